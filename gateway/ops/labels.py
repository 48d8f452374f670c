"""From what was found out of a message to label values: words of ours, whatever a stranger wrote.

Each function here is the place where peer text would get into a metric, and does not.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from gateway.auth.dkim.canonical import Canonicalization
from gateway.auth.dkim.signature import Algorithm
from gateway.auth.results import ArcStatus, DkimResult, DkimStatus, DmarcPolicy, DmarcResult, Evidence
from gateway.ops.tally import OTHER

NONE: Final = ""  # Prometheus: an empty label is one that is not there


class Method(StrEnum):
    """The checks, as `gateway_auth_results_total` names them."""

    SPF = "spf"
    SPF_HELO = "spf_helo"
    DKIM = "dkim"
    DMARC = "dmarc"
    IPREV = "iprev"
    ARC = "arc"


class DmarcDiscovery(StrEnum):
    """Where the record was found that applies (RFC 9989 §4.10.1)."""

    OWN = "own"  # at the author domain itself
    WALK = "walk"  # at a name above it, by the tree walk
    NONE = "none"  # nowhere, or it could not be looked up or used


# Counted for every message: a name costs a tenth of looking into an enum, in Python 3.11.
_SPF, _SPF_HELO, _DKIM, _DMARC, _IPREV, _ARC = Method
_NO_CHAIN: Final = ArcStatus.NONE
_FOUND_THERE: Final = DmarcDiscovery.OWN
_FOUND_ABOVE: Final = DmarcDiscovery.WALK

_ALGORITHMS: Final[dict[str | None, str]] = {None: NONE} | {str(one): str(one) for one in Algorithm}
_KEY_BITS: Final[dict[int | None, str]] = {None: NONE} | {
    bits: str(bits) for bits in (256, 512, 768, 1_024, 1_536, 2_048, 3_072, 4_096)
}
_CANONICALIZATIONS: Final[dict[str | None, str]] = {None: NONE} | {
    form: form for form in (f"{header}/{body}" for header in Canonicalization for body in Canonicalization)
}


def auth_results(evidence: Evidence) -> list[tuple[str, str, str]]:
    """`(method, status, problem)` of every check that was made; DKIM once for each signature."""
    spf, spf_helo, dmarc, iprev = evidence.spf, evidence.spf_helo, evidence.dmarc, evidence.iprev
    arc = evidence.arc
    found: list[tuple[str, str, str]] = [
        (_DKIM, signature.status, signature.problem or NONE) for signature in evidence.dkim
    ]
    if spf is not None:
        found.append((_SPF, spf.status, spf.problem or NONE))
    if spf_helo is not None:
        found.append((_SPF_HELO, spf_helo.status, spf_helo.problem or NONE))
    if dmarc is not None:
        if not evidence.dkim:
            found.append((_DKIM, DkimStatus.NONE, NONE))
        found.append((_DMARC, dmarc.status, dmarc.problem or NONE))
    if iprev is not None:
        found.append((_IPREV, iprev.status, iprev.problem or NONE))
    if arc is not None:
        found.append((_ARC, arc.status, (arc.problem or NONE) if arc.status is not _NO_CHAIN else NONE))
    return found


def dkim_form(signature: DkimResult) -> tuple[str, str, str, str]:
    """`(algorithm, key bits, canonicalization, status)`; `a=` and `c=` are a stranger's text until they are known words."""
    return (
        _ALGORITHMS.get(signature.algorithm, OTHER),
        _KEY_BITS.get(signature.key_bits, OTHER),
        _CANONICALIZATIONS.get(signature.canonicalization, OTHER),
        signature.status,
    )


def dmarc_policy(dmarc: DmarcResult) -> tuple[str, str, str, str]:
    """`(status, requested, applied, discovery)`; no policy where there is no record, and none is applied all the same."""
    record = dmarc.record
    if record is None:
        if dmarc.applied is DmarcPolicy.NONE:
            return dmarc.status, NONE, NONE, DmarcDiscovery.NONE
        return dmarc.status, dmarc.requested, dmarc.applied, DmarcDiscovery.NONE
    found = _FOUND_THERE if record.domain == dmarc.author_domain else _FOUND_ABOVE
    return dmarc.status, dmarc.requested, dmarc.applied, found


class OwnDomains:
    """The operator's own domains: which of them an author's domain is, or is below.

    Args:
        domains: `example.net`, or `.example.net` for all below it; in A-labels. They count alike here.
    """

    def __init__(self, domains: Iterable[str] = ()) -> None:
        self._own: Final = frozenset(domain.lower().removeprefix(".") for domain in domains)

    def find(self, domain: str) -> str | None:
        """The operator's own name for it; None: it is somebody else's. `domain` is in A-labels and lower case."""
        while domain:
            if domain in self._own:
                return domain
            domain = domain.partition(".")[2]
        return None
