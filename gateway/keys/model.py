"""One DKIM key from its making to its end, and what of it is published (RFC 6376 §3.6.1, §3.6.2.1).

A key must be seen in the DNS before it signs, and must stay there until the last mail that it signed has arrived. So it goes
through five states, forward only, and the time of each step is kept: the state is nothing but the last step taken.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from gateway.auth.dkim.key import KeyRecord, KeyType, parse_key

MAX_NAME_CHARACTERS: Final = 240  # the file is named like the record, and a file's name may have 255 bytes


class KeyState(StrEnum):
    """Where a key stands; the words are those of the state file and of `gateway keys list`."""

    MADE = "made"  # not seen in the DNS yet: publish its record, or let `rotate --publish` do it
    PUBLISHED = "published"  # seen in the DNS with the right public key; does not sign yet
    ACTIVE = "active"  # signs
    RETIRING = "retiring"  # signs no more; its record stays for mail that is still under way
    GONE = "gone"  # its record is revoked or taken away, its private key deleted


STEPS: Final = (KeyState.PUBLISHED, KeyState.ACTIVE, KeyState.RETIRING, KeyState.GONE)
"""What follows the making, in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedKey:
    """One key of the directory. All times are UTC, in whole seconds.

    Attributes:
        domain: `d=`, in A-labels, lower case.
        selector: `s=`.
        public: `p=`: the public key in base64, as it is published.
        created: when it was made.
        published: when its record was first seen in the live DNS; None: not yet. Likewise the others.
    """

    domain: str
    selector: str
    algorithm: KeyType
    public: str
    created: datetime
    published: datetime | None = None
    active: datetime | None = None
    retiring: datetime | None = None
    gone: datetime | None = None

    @property
    def state(self) -> KeyState:
        """The last step that it has taken."""
        taken = [step for step in STEPS if self.time_of(step) is not None]
        return taken[-1] if taken else KeyState.MADE

    def time_of(self, step: KeyState) -> datetime | None:
        """When it took this step; None: not yet."""
        match step:
            case KeyState.MADE:
                return self.created
            case KeyState.PUBLISHED:
                return self.published
            case KeyState.ACTIVE:
                return self.active
            case KeyState.RETIRING:
                return self.retiring
            case KeyState.GONE:
                return self.gone

    @property
    def name(self) -> str:
        """Where its record stands."""
        return record_name(self.domain, self.selector)

    @property
    def file_name(self) -> str:
        """The private key's file in the directory."""
        return f"{self.name}.pem"

    @property
    def record(self) -> bytes:
        """The record to publish."""
        return key_record(self.algorithm, self.public)

    @property
    def revoked_record(self) -> bytes:
        """The record that takes it back: no public key."""
        return key_record(self.algorithm, "")

    @property
    def key_record(self) -> KeyRecord:
        """The record as a verifier reads it.

        Raises:
            DkimError: no verifier would take it.
        """
        return parse_key(self.record)


def record_name(domain: str, selector: str) -> str:
    """Where a key is published (RFC 6376 §3.6.2.1)."""
    return f"{selector}._domainkey.{domain}"


def key_record(algorithm: KeyType, public: str) -> bytes:
    """The TXT record of a key; an empty `p=` revokes it (RFC 6376 §3.6.1)."""
    return f"v=DKIM1; k={algorithm}; p={public}".encode("ascii")
