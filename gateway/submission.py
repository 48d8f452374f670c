"""What our own users' messages must be, and are made to be, before they leave (RFC 6409 §6, §8).

A password proves a login and nothing else. So every author that a message names must belong to the login, or our
signature would vouch for a lie; blind copies are taken out, and a Date and a Message-ID put in where there is none.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, assert_never

from gateway.mail.address import Mailbox, parse_mailbox
from gateway.mail.author import AuthorFault, find_mailboxes
from gateway.mail.dates import write_date
from gateway.mail.edits import Edits, NewField
from gateway.mail.envelope import Envelope
from gateway.mail.errors import ParseError
from gateway.mail.headers import fold_field
from gateway.mail.message import Message
from gateway.mail.reply import Reply

EVERYBODY: Final = "*"
"""The login whose addresses all logins have."""

_BLIND: Final = (
    b"bcc",
    b"resent-bcc",
)  # RFC 5322 §3.6.3: for the recipients named in it, and for nobody else
_FAULTS: Final = {
    AuthorFault.NO_FROM: "the message has no From field (RFC 5322 section 3.6)",
    AuthorFault.SEVERAL_FROM: "the message has several {field} fields (RFC 5322 section 3.6)",
    AuthorFault.NO_AUTHOR: "the {field} field names no address",
    AuthorFault.SEVERAL_AUTHORS: "the {field} field names several addresses",
    AuthorFault.UNCLEAR: "the {field} field cannot be read in one way only (RFC 5322 section 3.4)",
    AuthorFault.DOMAIN_INVALID: "the {field} field names an address that cannot exist",
    AuthorFault.AMBIGUOUS_MESSAGE: "the header section cannot be read in one way only (RFC 5322 section 2.2)",
}


class FromCheck(StrEnum):
    """What makes an address belong to a login."""

    LOGIN = "login"  # it is the login's own, or listed for it
    DOWNSTREAM = "downstream"  # likewise, or downstream took it in MAIL FROM of this very transaction
    OFF = "off"  # nothing: anything may be written


class Submission:
    """The rules of the submission door.

    Args:
        hostname: the right side of a Message-ID that is ours.
        from_check: what makes an address belong to a login.
        senders: further addresses by login, `EVERYBODY` included; `@example.net` is a whole domain.
        login_domain: of logins that are no address.
        recipient_delimiter: what stands before an address extension; empty: there are none.
        is_local: whether mail for a domain is ours. A login that is an address at another domain does not own that
            address: what the mail server makes of it, we cannot know.
    """

    def __init__(
        self,
        *,
        hostname: str,
        from_check: FromCheck,
        senders: Mapping[str, Iterable[str]],
        is_local: Callable[[str], bool],
        login_domain: str | None = None,
        recipient_delimiter: str = "",
    ) -> None:
        self._hostname = hostname
        self._from_check = from_check
        self._senders = {_fold(login): frozenset(map(_fold, listed)) for login, listed in senders.items()}
        self._login_domain = login_domain
        self._delimiter = recipient_delimiter
        self._is_local = is_local

    def refuse_sender(self, envelope: Envelope) -> Reply | None:
        """Whether the reverse path is somebody else's; the null path, of receipts (RFC 8098 §3), is everybody's."""
        mailbox = envelope.mail_from
        if self._from_check is not FromCheck.LOGIN or mailbox is None or self._owns(envelope, mailbox):
            return None
        return _refusal(envelope, _not_yours(envelope, mailbox))

    def refuse_authors(self, envelope: Envelope, message: Message) -> Reply | None:
        """Whether From, or Sender where there is one, names anybody else, or leaves a doubt.

        Resent fields are not looked at: whoever reads the message is shown From, so they cannot excuse it.
        """
        if self._from_check is FromCheck.OFF:
            return None
        for field in ("From", "Sender"):
            key = field.lower().encode()
            if field == "Sender" and not message.positions(key):
                continue
            found = find_mailboxes(message, key)
            if isinstance(found, AuthorFault):
                return _refusal(envelope, _FAULTS[found].format(field=field))
            if field == "Sender" and len(found) > 1:
                return _refusal(envelope, _FAULTS[AuthorFault.SEVERAL_AUTHORS].format(field=field))
            for mailbox in found:
                if not self._may_write(envelope, mailbox):
                    return _refusal(envelope, _not_yours(envelope, mailbox))
        return None

    def complete(self, envelope: Envelope, message: Message, now: float) -> Edits:
        """What is taken out and put in. `now`: seconds since 1970."""
        blind = frozenset(position for key in _BLIND for position in message.positions(key))
        return Edits(prepend=tuple(self._missing(envelope, message, now)), remove=blind)

    def _missing(self, envelope: Envelope, message: Message, now: float) -> Iterator[NewField]:
        when = datetime.fromtimestamp(now, UTC)
        if not message.positions(b"date"):  # RFC 6409 §8.1
            yield fold_field("Date", [write_date(when)])
        if not message.positions(b"message-id"):  # RFC 6409 §8.3
            yield fold_field("Message-ID", [f"<{when:%Y%m%d%H%M%S}.{envelope.id}@{self._hostname}>"])

    def _may_write(self, envelope: Envelope, mailbox: Mailbox) -> bool:
        match self._from_check:
            case FromCheck.OFF:
                return True
            case FromCheck.LOGIN:
                return self._owns(envelope, mailbox)
            case FromCheck.DOWNSTREAM:
                taken = envelope.mail_from
                said = taken is not None and _address(taken.local_part, taken.domain) == _address(
                    mailbox.local_part, mailbox.domain
                )
                return said or self._owns(envelope, mailbox)
            case _:
                assert_never(self._from_check)

    def _owns(self, envelope: Envelope, mailbox: Mailbox) -> bool:
        login = envelope.session.login or ""
        listed = self._senders.get(_fold(login), frozenset()) | self._senders.get(EVERYBODY, frozenset())
        own = self._own_address(login)
        names = {_address(mailbox.local_part, mailbox.domain), _address("", mailbox.domain)}
        if self._delimiter:
            base = mailbox.local_part.partition(self._delimiter)[0]
            names.add(_address(base or mailbox.local_part, mailbox.domain))
        return own in names or not names.isdisjoint(listed)

    def _own_address(self, login: str) -> str | None:
        """The address that a login is."""
        text = login if "@" in login or not self._login_domain else f"{login}@{self._login_domain}"
        try:
            mailbox = parse_mailbox(text)
        except ParseError:
            return None
        if mailbox.domain != self._login_domain and not self._is_local(mailbox.domain):
            return None
        return _address(mailbox.local_part, mailbox.domain)


def _address(local_part: str, domain: str) -> str:
    return f"{_fold(local_part)}@{domain}"


def _fold(text: str) -> str:
    """Without regard to case, as mail servers do it: in ASCII only. Unicode's rules make one of `ß` and `ss`."""
    return text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


def _not_yours(envelope: Envelope, mailbox: Mailbox) -> str:
    return f"{envelope.session.login} may not send as {mailbox}"


def _refusal(envelope: Envelope, why: str) -> Reply:
    return Reply.of(550, "5.7.1", f"{why} ({envelope.id})")
