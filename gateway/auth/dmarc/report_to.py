"""May reports about one domain go to an address in another (RFC 9990 §4)? Only if the other says in its own DNS that it wants them.

Without that anybody could have the world's reports sent to a stranger.
"""

from typing import Final

from gateway.auth.dmarc.record import read_record
from gateway.auth.dmarc.walk import TreeWalk
from gateway.dns.resolver import Answer, NotFound, RecordType, Resolver, Temporary

AUTHORISATION: Final = b"v=DMARC1;"
"""The shortest record that says yes."""


def authorisation_name(policy_domain: str, reader: str) -> str:
    """Where the domain that gets the reports says yes."""
    return f"{policy_domain}._report._dmarc.{reader}"


async def wants_reports(
    policy_domain: str, reader: str, resolver: Resolver, walk: TreeWalk
) -> bool | Temporary:
    """Whether reports about `policy_domain` may go to an address in `reader`; both in A-labels.

    Within one organization nobody is asked.
    """
    same = await walk.in_relaxed_alignment(policy_domain, reader)
    if same is not False:
        return same
    outcome = await resolver.query(authorisation_name(policy_domain, reader), RecordType.TXT)
    match outcome:
        case Temporary():
            return outcome
        case NotFound():
            return False
        case Answer():
            texts = [text for text in outcome.records if isinstance(text, bytes)]
            return any(read_record(policy_domain, text) is not None for text in texts)
