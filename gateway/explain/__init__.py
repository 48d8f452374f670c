"""Results in plain words, for the command line and for the pages: what was found, what it means, which section says so.

Pure; text of strangers is not escaped here: who shows it knows where it goes.
"""

from gateway.explain.checks import Explanation, Finding, Tone, explain, explain_evidence

__all__ = ["Explanation", "Finding", "Tone", "explain", "explain_evidence"]
