"""One message's whole story, kept so that an operator who is asked "why was this refused?" can answer in half a minute.

Who sent it, what was asked and answered, which rules were tried, what was changed, what the mail server said. Nothing of the
body is ever in it, and of the header only what the story is told by: Message-ID and who From says wrote it.
"""

from gateway.trace.model import Addressee, Attempt, Heard, Trace

__all__ = ["Addressee", "Attempt", "Heard", "Trace"]
