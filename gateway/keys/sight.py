"""What the world sees where a key should stand: asked of the live DNS, read as a verifier reads it (RFC 6376 §3.6.2)."""

from dataclasses import dataclass
from enum import StrEnum

from gateway.auth.dkim.key import KeyRecord, select_key
from gateway.auth.dkim.tags import DkimError
from gateway.auth.results import Problem
from gateway.dns.resolver import Answer, NotFound, RecordType, Resolver, Temporary


class Sight(StrEnum):
    """How what stands there compares with what should."""

    VISIBLE = "visible"  # the right public key
    ABSENT = "absent"  # nothing
    REVOKED = "revoked"  # a key record without a key
    OTHER = "other"  # something else: another key, several, or text that is no key
    UNKNOWN = "unknown"  # it cannot be known now


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was found.

    Attributes:
        found: in a few words of ours.
    """

    sight: Sight
    found: str


async def look_at_key(resolver: Resolver, name: str, wanted: KeyRecord) -> Seen:
    """Look up the key record at `name` and compare its public key with `wanted`'s."""
    outcome = await resolver.query(name, RecordType.TXT)
    match outcome:
        case Temporary():
            return Seen(sight=Sight.UNKNOWN, found=f"DNS: {outcome.trouble}")
        case NotFound():
            return Seen(sight=Sight.ABSENT, found=f"no record ({outcome.missing})")
        case Answer():
            return _compare([record for record in outcome.records if isinstance(record, bytes)], wanted)


def _compare(records: list[bytes], wanted: KeyRecord) -> Seen:
    if not any(b"p=" in record for record in records):  # of a wildcard, mostly
        return Seen(sight=Sight.ABSENT, found="no key, only other text")
    try:
        standing = select_key(records)
    except DkimError as error:
        if error.problem is Problem.DKIM_KEY_REVOKED:
            return Seen(sight=Sight.REVOKED, found="a revoked key")
        return Seen(sight=Sight.OTHER, found=str(error))
    if standing.key == wanted.key:
        return Seen(sight=Sight.VISIBLE, found="the right key")
    return Seen(sight=Sight.OTHER, found="another public key")
