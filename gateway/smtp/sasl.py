"""SASL as it passes through SMTP (RFC 4422, RFC 4954): who logs in is read here, whether they may is for downstream to say.

A mechanism is relayed only where its first response names the user, because From must belong to somebody. Never those
that are bound to the channel (`SCRAM-…-PLUS`, EXTERNAL): ours and downstream's are two, and the binding exists to tell.
"""

import base64
import binascii
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from gateway.mail.errors import ParseError

MAX_RESPONSE_BYTES: Final = 12_288
"""RFC 4954 §4: the longest line of an exchange, in base64."""

MAX_LOGIN_CHARACTERS: Final = 255

_BASE64: Final = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_CRAM: Final = re.compile(r"(.+) [0-9a-f]{32}")  # RFC 2195 §2
# RFC 5802 §7: no channel binding (`n`, or `y`: "you do not offer it"), no `m=`: an extension that must be understood.
_SCRAM: Final = re.compile(r"[ny],(?:a=([^,]+))?,n=([^,]+),r=[!-+\--~]+(?:,.*)?")
_SCRAM_NAME: Final = re.compile(r"(?:[^=,]|=2C|=3D)+")
_OAUTHBEARER: Final = re.compile(r"[ny],a=([^,\x01]+),\x01.*\x01\x01", re.DOTALL)  # RFC 7628 §3.1
_XOAUTH2: Final = re.compile(r"user=([^\x01]+)\x01.*\x01\x01", re.DOTALL)


class Mechanism(StrEnum):
    """Those that are relayed, where downstream offers them; best first. The word is the wire's, and the metric label."""

    SCRAM_SHA_512 = "SCRAM-SHA-512"
    SCRAM_SHA_256 = "SCRAM-SHA-256"  # RFC 7677
    SCRAM_SHA_1 = "SCRAM-SHA-1"  # RFC 5802
    CRAM_MD5 = "CRAM-MD5"  # RFC 2195
    OAUTHBEARER = "OAUTHBEARER"  # RFC 7628
    XOAUTH2 = "XOAUTH2"  # Google's and Microsoft's form of it
    PLAIN = "PLAIN"  # RFC 4616
    LOGIN = "LOGIN"  # never a standard, and all that some devices know

    @property
    def takes_initial_response(self) -> bool:
        """Whether the client may speak first (RFC 4954 §4)."""
        return self is not Mechanism.CRAM_MD5


def relayed_mechanisms(offered: Iterable[str]) -> tuple[str, ...]:
    """Of downstream's mechanisms those that we offer."""
    words = frozenset(offered)
    return tuple(mechanism.value for mechanism in Mechanism if mechanism in words)


def decode_response(text: bytes) -> bytes:
    """What a line of the exchange says.

    Raises:
        ParseError: not base64, in its one canonical form.
    """
    if not _BASE64.fullmatch(text):
        raise ParseError("not base64")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ParseError("not base64") from None


def encode_response(content: bytes) -> bytes:
    """As it goes downstream: encoded anew, so that nobody reads it in another way than we did."""
    return base64.b64encode(content)


def is_challenge(text: str) -> bool:
    """Whether downstream's words can be passed on to a client that expects base64."""
    return len(text) <= MAX_RESPONSE_BYTES and _BASE64.fullmatch(text.encode("utf-8", "replace")) is not None


def read_login(mechanism: Mechanism, response: bytes) -> str:
    """Who logs in, from the client's first response.

    Raises:
        ParseError: it names nobody, or acting as somebody else is asked for. The text tells nothing of the response.
    """
    try:
        text = response.decode("utf-8")
    except UnicodeDecodeError:
        raise ParseError("not UTF-8") from None
    acting_as, login = _names(mechanism, text)
    if not (0 < len(login) <= MAX_LOGIN_CHARACTERS and login.isprintable()):
        raise ParseError("a login that cannot be printed")
    if acting_as not in {
        "",
        login,
    }:  # RFC 4422 §3.4.1: From is held against one name, and it must be the proven one
        raise ParseError("one user acting as another")
    return login


def _names(mechanism: Mechanism, text: str) -> tuple[str, str]:
    """The authorisation identity ("" where there is none) and the authentication identity."""
    match mechanism:
        case Mechanism.PLAIN:
            parts = text.split("\0")
            if len(parts) != 3 or not parts[2]:  # noqa: PLR2004 - RFC 4616 §2: authzid, authcid, passwd
                raise ParseError("not three parts")
            return parts[0], parts[1]
        case Mechanism.LOGIN:
            return "", text
        case Mechanism.CRAM_MD5:
            return "", _match(_CRAM, text)[1]
        case Mechanism.SCRAM_SHA_1 | Mechanism.SCRAM_SHA_256 | Mechanism.SCRAM_SHA_512:
            found = _match(_SCRAM, text)
            return _unescape(found[1]) if found[1] else "", _unescape(found[2])
        case Mechanism.OAUTHBEARER:
            return "", _unescape(_match(_OAUTHBEARER, text)[1])
        case Mechanism.XOAUTH2:
            return "", _match(_XOAUTH2, text)[1]


def _match(form: re.Pattern[str], text: str) -> re.Match[str]:
    found = form.fullmatch(text)
    if not found:
        raise ParseError("not the mechanism's first response")
    return found


def _unescape(name: str) -> str:
    """RFC 5802 §5.1 saslname."""
    if not _SCRAM_NAME.fullmatch(name):
        raise ParseError("a badly escaped name")
    return name.replace("=2C", ",").replace("=3D", "=")
