"""MAIL and RCPT with their ESMTP parameters (RFC 5321 §4.1.1.11): each is understood and passed on, or refused.

A parameter that is dropped is a promise broken: a delivery report that never comes, an address that is mangled.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.mail.address import Mailbox, parse_forward_path, parse_path, split_path
from gateway.mail.errors import ParseError
from gateway.mail.reply import Reply
from gateway.smtp import replies
from gateway.smtp.ehlo import Capabilities
from gateway.smtp.errors import RemoteProtocolError
from gateway.smtp.xtext import decode_xtext

MAX_PARAMETERS: Final = 10
MAX_ENVID_CHARACTERS: Final = 100  # RFC 3461 §4.4
MAX_AUTH_CHARACTERS: Final = 500  # RFC 4954 §3
MAX_ORCPT_CHARACTERS: Final = 500  # RFC 3461 §4.2

_FROM: Final = re.compile(
    r"FROM:[ ]*", re.IGNORECASE
)  # Deviation: blanks after the colon, which many devices send
_TO: Final = re.compile(r"TO:[ ]*", re.IGNORECASE)
_PARAMETER: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]{0,31})(?:=([^\x00-\x20=\x7f]+))?")
_SIZE: Final = re.compile(r"[0-9]{1,20}")  # RFC 1870 §3
_ADDRESS_TYPE: Final = re.compile(r"[A-Za-z0-9-]{1,32}")
_PRINTABLE: Final = re.compile(rb"[\x20-\x7e]*")
_NOTIFY: Final = frozenset({"SUCCESS", "FAILURE", "DELAY"})  # RFC 3461 §4.1
_BODY: Final = frozenset({"7BIT", "8BITMIME"})  # RFC 6152; BINARYMIME (RFC 3030) is not offered
_RET: Final = frozenset({"FULL", "HDRS"})  # RFC 3461 §4.3

Parameters = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Sender:
    """MAIL's argument.

    Attributes:
        mailbox: None for the null path.
        params: keywords in upper case, values as given.
        size: the announced size in bytes, None where there is none.
    """

    mailbox: Mailbox | None
    params: Parameters
    size: int | None

    @property
    def smtputf8(self) -> bool:
        """Whether the client asked for internationalised mail."""
        return "SMTPUTF8" in self.params


def parse_sender(argument: str, offered: Capabilities) -> Sender:
    """Read what follows MAIL.

    Args:
        argument: the line without the verb.
        offered: what the client was told that it may ask for.

    Raises:
        RemoteProtocolError: anything that cannot be passed on as it stands.
    """
    path, params = _split(argument, _FROM, replies.BAD_SENDER)
    for keyword, value in params.items():
        _check_mail_parameter(keyword, value, offered)
    smtputf8 = "SMTPUTF8" in params
    try:
        mailbox = parse_path(path, smtputf8=smtputf8)
    except ParseError:
        raise RemoteProtocolError(_bad_address(path, replies.BAD_SENDER, smtputf8=smtputf8)) from None
    size = params.get("SIZE")
    return Sender(mailbox, params, None if size is None else int(size))


def parse_recipient(
    argument: str, offered: Capabilities, *, smtputf8: bool
) -> tuple[Mailbox | None, Parameters]:
    """Read what follows RCPT; the mailbox is None for `<Postmaster>`.

    Raises:
        RemoteProtocolError: anything that cannot be passed on as it stands.
    """
    path, params = _split(argument, _TO, replies.BAD_RECIPIENT)
    for keyword, value in params.items():
        _check_rcpt_parameter(keyword, value, offered, smtputf8=smtputf8)
    try:
        return parse_forward_path(path, smtputf8=smtputf8), params
    except ParseError:
        raise RemoteProtocolError(_bad_address(path, replies.BAD_RECIPIENT, smtputf8=smtputf8)) from None


def keeps(downstream: Capabilities, params: Parameters) -> bool:
    """Whether this very server takes these parameters; the client may have been told of another's."""
    return not any(
        (keyword in {"RET", "ENVID", "NOTIFY", "ORCPT"} and not downstream.dsn)
        or (keyword == "BODY" and not downstream.eight_bit)
        or (keyword == "SMTPUTF8" and not downstream.smtputf8)
        or (keyword == "AUTH" and not downstream.auth)
        or (keyword == "REQUIRETLS" and not downstream.requiretls)
        for keyword in params
    )


def write_parameters(params: Parameters) -> str:
    """The parameters as they follow the path, each with a blank before it."""
    if not params:
        return ""
    return "".join(
        f" {keyword}" if value is None else f" {keyword}={value}" for keyword, value in params.items()
    )


def _split(argument: str, prefix: re.Pattern[str], complaint: Reply) -> tuple[str, Parameters]:
    begun = prefix.match(argument)
    if not begun:
        raise RemoteProtocolError(complaint)
    try:
        path, rest = split_path(argument[begun.end() :])
    except ParseError:
        raise RemoteProtocolError(complaint) from None
    return path, _parse_parameters(rest) if rest else {}


def _parse_parameters(text: str) -> Parameters:
    words = text.split()
    if len(words) > MAX_PARAMETERS:
        raise RemoteProtocolError(replies.BAD_PARAMETER)
    params: dict[str, str | None] = {}
    for word in words:
        match = _PARAMETER.fullmatch(word)
        if not match or match[1].upper() in params:
            raise RemoteProtocolError(replies.BAD_PARAMETER)
        params[match[1].upper()] = match[2]
    return params


def _check_mail_parameter(keyword: str, value: str | None, offered: Capabilities) -> None:
    given = value or ""
    match keyword:
        case "SIZE":
            offers, good = True, _SIZE.fullmatch(given) is not None
        case "BODY":
            offers, good = offered.eight_bit, given.upper() in _BODY
        case "SMTPUTF8":
            offers, good = offered.smtputf8, value is None
        case "REQUIRETLS":  # RFC 8689 §2
            offers, good = offered.requiretls, value is None
        case "RET":
            offers, good = offered.dsn, given.upper() in _RET
        case "ENVID":
            offers, good = offered.dsn, 0 < len(given) <= MAX_ENVID_CHARACTERS and _is_printable_xtext(given)
        case "AUTH":  # RFC 4954 §5: a mailbox, or <>; what it is worth is for downstream to say
            offers, good = bool(offered.auth), 0 < len(given) <= MAX_AUTH_CHARACTERS and _is_xtext(given)
        case _:
            offers, good = False, False
    _require(offers=offers, good=good)


def _check_rcpt_parameter(keyword: str, value: str | None, offered: Capabilities, *, smtputf8: bool) -> None:
    given = value or ""
    match keyword:
        case "NOTIFY":
            words = given.upper().split(",")
            good = words == ["NEVER"] or (_NOTIFY.issuperset(words) and len(set(words)) == len(words))
        case "ORCPT":
            good = len(given) <= MAX_ORCPT_CHARACTERS and _is_original_recipient(given, smtputf8=smtputf8)
        case _:
            _require(offers=False, good=False)
            return
    _require(offers=offered.dsn, good=good)


def _require(*, offers: bool, good: bool) -> None:
    if not offers:
        raise RemoteProtocolError(replies.UNKNOWN_PARAMETER)
    if not good:
        raise RemoteProtocolError(replies.BAD_PARAMETER)


def _is_original_recipient(value: str, *, smtputf8: bool) -> bool:
    """RFC 3461 §4.2 `addr-type ";" xtext`; RFC 6533 §3 lets `utf-8` addresses stand unencoded in SMTPUTF8 sessions."""
    address_type, semicolon, address = value.partition(";")
    if not semicolon or not address or not _ADDRESS_TYPE.fullmatch(address_type):
        return False
    if address_type.lower() == "utf-8":
        return smtputf8 or address.isascii()
    return _is_printable_xtext(address)


def _is_xtext(value: str) -> bool:
    try:
        decode_xtext(value)
    except ParseError:
        return False
    return True


def _is_printable_xtext(value: str) -> bool:
    try:
        return _PRINTABLE.fullmatch(decode_xtext(value)) is not None
    except ParseError:
        return False


def _bad_address(path: str, complaint: Reply, *, smtputf8: bool) -> Reply:
    return complaint if smtputf8 or path.isascii() else replies.NEEDS_SMTPUTF8  # RFC 6531 §3.5
