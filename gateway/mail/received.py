"""The Received trace field (RFC 5321 §4.4): who gave us the message, how, and when. Loops and delays are found by it."""

import re
from datetime import datetime
from functools import lru_cache
from typing import Final

from gateway.mail.address import parse_domain_or_literal
from gateway.mail.dates import write_date
from gateway.mail.edits import NewField
from gateway.mail.envelope import Envelope, ip_text
from gateway.mail.errors import ParseError
from gateway.mail.headers import comment, fold_line, join_lines

MAX_ID_CHARACTERS: Final = 64

_NAME: Final = "Received"
_BEGIN: Final = len("Received: ")
_COMMON_CHARACTERS: Final = 100

_NOT_ATOM: Final = re.compile(r"[^A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]")


def write_received(
    envelope: Envelope, *, by: str, now: datetime, for_recipient: bool, hide_client: bool = False
) -> NewField:
    """The trace field for this transaction.

    Args:
        envelope: a HELO name that is neither a domain nor an address literal goes into a comment, made harmless.
        by: our own host name.
        now: with its time zone.
        for_recipient: name the recipient, if there is exactly one; more than one would be told of each other.
        hide_client: do not tell from where it came. Deviation: RFC 5321 §4.4 asks for FROM; readers do without.

    Raises:
        ValueError: `now` has no time zone: a mistake of ours.
    """
    session = envelope.session
    by_pieces = [
        "by",
        by,
        "with",
        _protocol(envelope),
        "id",
        _NOT_ATOM.sub("?", envelope.id[:MAX_ID_CHARACTERS]) or "?",
    ]
    if session.tls:
        by_pieces.append(comment(f"using {session.tls.version} with cipher {session.tls.cipher}"))
    if for_recipient and len(envelope.recipients) == 1:
        mailbox = envelope.recipients[0].mailbox
        recipient = "<Postmaster>" if mailbox is None else f"<{mailbox}>"
        if envelope.smtputf8 or recipient.isascii():
            by_pieces += ["for", recipient]
    by_pieces[-1] += ";"
    if hide_client:
        return join_lines(_NAME, (fold_line(by_pieces, column=_BEGIN)[0], write_date(now)))
    helo = session.helo or ""
    write_from = _write_common_from if len(helo) <= _COMMON_CHARACTERS else _write_from
    from_line = write_from(session.client_name, ip_text(session.client_ip), helo)
    return join_lines(_NAME, (from_line, fold_line(by_pieces)[0], write_date(now)))


def _write_from(name: str | None, client_ip: str, helo: str) -> str:
    """The client's part."""
    address = f"[IPv6:{client_ip}]" if ":" in client_ip else f"[{client_ip}]"  # RFC 5321 §4.1.3
    host = f"{name or 'unknown'} {address}"
    try:
        read = parse_domain_or_literal(helo)
    except ParseError:
        pieces = ["from", address, comment(f"{host} helo={helo}")]
    else:
        pieces = ["from", helo if helo.isascii() else read, comment(host)]
    return fold_line(pieces, column=_BEGIN)[0]


_write_common_from: Final = lru_cache(maxsize=1024)(_write_from)


def _protocol(envelope: Envelope) -> str:
    """The `with` keyword (RFC 3848, RFC 6531 §4.3)."""
    session = envelope.session
    if not session.esmtp:
        return "SMTP"
    base = "UTF8SMTP" if envelope.smtputf8 else "ESMTP"
    # RFC 3848: S before A, as in ESMTPSA.
    return base + ("S" if session.tls else "") + ("A" if session.login is not None else "")
