"""The word for a DNS failure in a result."""

from typing import Final

from gateway.auth.results import Problem
from gateway.dns.resolver import Trouble

_PROBLEMS: Final = {
    Trouble.TIMEOUT: Problem.DNS_TIMEOUT,
    Trouble.SERVFAIL: Problem.DNS_SERVFAIL,
    Trouble.REFUSED: Problem.DNS_REFUSED,
    Trouble.MALFORMED: Problem.DNS_MALFORMED,
    Trouble.BUDGET: Problem.DNS_BUDGET,
}


def problem_of(trouble: Trouble) -> Problem:
    """The problem that a check names where it could not look something up."""
    return _PROBLEMS[trouble]


def is_trouble(problem: Problem) -> bool:
    """Whether it is one of those: the next attempt may go better."""
    return problem in _PROBLEMS.values()
