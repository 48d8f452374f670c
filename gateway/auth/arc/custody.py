"""Whose word in a chain is believed (RFC 8617 §7.2, §9.3): only the operator can say, by naming sealers.

The last custodian vouches for the message as it is, and for having checked the chain before itself. So trust goes from the
newest set down, and ends at the first sealer that is not trusted: whatever is older, that one may have invented or altered.
"""

from collections.abc import Collection
from itertools import takewhile

from gateway.auth.results import ArcResult, ArcSet, ArcStatus, DmarcStatus
from gateway.mail.address import parse_domain
from gateway.mail.authentication_results import MethodResult
from gateway.mail.errors import ParseError


def trusted_sets(arc: ArcResult | None, sealers: Collection[str]) -> tuple[ArcSet, ...]:
    """The newest sets, newest first, down to the last that has only trusted sealers above it; none unless the chain passes."""
    if arc is None or not arc.sets or arc.status is not ArcStatus.PASS:
        return ()
    return _named(arc, sealers)


def is_trust_unknown(arc: ArcResult | None, sealers: Collection[str]) -> bool:
    """Whether the newest set claims to be a trusted sealer's, and DNS could not say now whether it is."""
    if arc is None or not arc.sets or arc.status is not ArcStatus.TEMPERROR:
        return False
    return bool(_named(arc, sealers))


def _named(arc: ArcResult, sealers: Collection[str]) -> tuple[ArcSet, ...]:
    return tuple(takewhile(lambda one: one.sealer in sealers, arc.sets))


def dmarc_before(trusted: tuple[ArcSet, ...], author_domain: str | None) -> DmarcStatus | None:
    """What DMARC was where the message came into trusted hands: the word of the oldest of the trusted sets.

    None where there is no such word, where it is said of another author domain, and where a set says two things: somebody
    may have got his own words into it.
    """
    if not trusted or author_domain is None or trusted[-1].results is None:
        return None
    found = [result for result in trusted[-1].results if result.method == "dmarc"]
    if len(found) != 1 or _author_domain(found[0]) != author_domain:
        return None
    try:
        return DmarcStatus(found[0].result)
    except ValueError:
        return None  # `bestguesspass` and the like


def _author_domain(result: MethodResult) -> str | None:
    named = [item.value for item in result.properties if (item.ptype, item.name) == ("header", "from")]
    if len(named) != 1:
        return None
    try:
        return parse_domain(named[0].rpartition("@")[2])
    except ParseError:
        return None
