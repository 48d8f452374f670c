"""Whom we take mail for: never an open relay (RFC 5321 §3.6.2, §7.8).

Downstream may trust the gateway's own address, so this is the only lock on the door: a stranger's recipient must be in
a domain of ours, and its local part must not hide a further hop that the mail server would follow.
"""

import re
from collections.abc import Iterable
from typing import Final

from gateway.mail.address import Mailbox

_FURTHER_HOP: Final = re.compile(r"[%!@]")
"""`user%elsewhere@ours`, `elsewhere!user@ours`, `"user@elsewhere"@ours`: Postfix rewrites each to a foreign address by
default (`allow_percent_hack`, `swap_bangpath`, `resolve_dequoted_address`)."""


class LocalDomains:
    """The domains that we receive for: `example.net` itself, `.example.net` all below it."""

    def __init__(self, domains: Iterable[str]) -> None:
        listed = {domain.lower() for domain in domains}
        self._exact = frozenset(domain for domain in listed if not domain.startswith("."))
        self._parents = frozenset(domain[1:] for domain in listed if domain.startswith("."))

    def __contains__(self, domain: str) -> bool:
        """Whether mail for this domain (A-labels, lower case; or an address literal) is ours."""
        if domain in self._exact:
            return True
        parent = domain.partition(".")[2] if self._parents else ""
        while parent:
            if parent in self._parents:
                return True
            parent = parent.partition(".")[2]
        return False


def may_receive(mailbox: Mailbox | None, domains: LocalDomains) -> bool:
    """Whether a stranger may send to this recipient; None, `<Postmaster>`, is always ours (RFC 5321 §4.5.1)."""
    return mailbox is None or (mailbox.domain in domains and not _FURTHER_HOP.search(mailbox.local_part))
