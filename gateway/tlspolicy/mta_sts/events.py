"""What becomes of policies and of the questions for them, in the words of the log and the metrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from gateway.tlspolicy.model import TlsProblem
from gateway.tlspolicy.mta_sts.policy import Mode


class Change(StrEnum):
    """What became of a policy; the words are the metric's labels."""

    FETCHED = "fetched"  # a policy that was not known, or a new version of one
    RENEWED = "renewed"  # the same policy, good for another max_age
    WEAKENED = (
        "weakened"  # it was enforced and now demands less: ask the domain's postmaster whether that was meant
    )
    MX_CHANGED = "mx-changed"  # still enforced, for other hosts
    EXPIRED = (
        "expired"  # an enforced policy ran out without being renewed: deliveries are no longer protected
    )
    RECORD_GONE = "record-gone"  # the record went, the enforced policy stands until it expires
    FETCH_FAILED = "fetch-failed"  # the problem says why; a known policy stands
    SHELF_FAILED = "shelf-failed"  # the store cannot be used; what is in memory stands


class LookUp(StrEnum):
    """How the question for a domain's policy was answered; the words are the metric's labels."""

    HIT = "hit"  # a known policy, and its record has not changed
    FETCHED = "fetched"  # the policy was fetched first
    STANDS = "stands"  # a known policy, though its record or its newer version could not be had
    FAILED = "failed"  # there may be one, and it could not be had
    NONE = "none"  # the domain has none


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The policies in memory.

    Attributes:
        by_mode: how many, by mode.
        nearest_end: when the first of the enforced ones runs out; None: there is none.
        overdue: enforced ones of which less than a quarter of their life is left: renewing has failed for long.
    """

    by_mode: Mapping[str, int]
    nearest_end: datetime | None
    overdue: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyEvent:
    """For the log and the metrics.

    Attributes:
        before: the mode that held, None where no policy did.
        mode: the mode that holds now.
        detail: for people; may hold a stranger's text.
    """

    change: Change
    domain: str
    before: Mode | None = None
    mode: Mode | None = None
    problem: TlsProblem | None = None
    detail: str = ""
