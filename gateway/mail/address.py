"""Addresses and domain names as SMTP and header fields write them (RFC 5321 §4.1.2, RFC 5322 §3.4, RFC 6531, RFC 5890)."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Mailbox:
    """One address.

    Attributes:
        local_part: its meaning: quotes and backslashes undone, case kept.
        domain: A-labels in lower case without a final dot, or an address literal with its brackets.
        text: as the peer wrote it, without angle brackets and source route; safe to put into an SMTP command again.
    """

    local_part: str
    domain: str
    text: str = field(compare=False)
