"""Encoded-words (RFC 2047): how a display name carries letters outside ASCII. For show only, never for an address."""

import binascii
import re
from functools import partial
from typing import Final

_WORD: Final = re.compile(r"=\?([A-Za-z0-9_-]{1,40})(?:\*[A-Za-z0-9-]{0,40})?\?([BbQq])\?([^? \t]*)\?=")
_BETWEEN_WORDS: Final = re.compile(r"(?<=\?=)[ \t]+(?==\?)")  # RFC 2047 §6.2: not shown
_OCTET: Final = re.compile(rb"=([0-9A-Fa-f]{2})")

# Not every codec that Python knows: some cost time without bound, and some are no character sets at all.
_CHARSETS: Final = frozenset(
    {
        "utf-8",
        "us-ascii",
        "koi8-r",
        "koi8-u",
        "gb2312",
        "gbk",
        "gb18030",
        "big5",
        "euc-jp",
        "euc-kr",
        "shift_jis",
    }
    | {"iso-2022-jp"}
    | {"utf8", "ascii", "latin1", "latin-1", "ks_c_5601-1987"}  # not registered so, but readers know them
    | {f"cp{page}" for page in range(1250, 1259)}
    | {f"iso8859-{part}" for part in range(1, 17)}
    | {f"iso-8859-{part}" for part in range(1, 17)}
    | {f"windows-{page}" for page in range(1250, 1259)},
)


def decode_words(text: str, *, any_charset: bool = False) -> str:
    """The text with its encoded-words decoded; one in a charset that is not known here stays as it is.

    Args:
        text: one line.
        any_charset: read those too, as far as they are ASCII: some other reader may know the charset.
    """
    if "=?" not in text:
        return text
    return _WORD.sub(partial(_decode_word, any_charset=any_charset), _BETWEEN_WORDS.sub("", text))


def _decode_word(word: re.Match[str], *, any_charset: bool) -> str:
    charset, encoding = word[1].lower(), word[2].upper()
    if charset not in _CHARSETS:
        if not any_charset:
            return word[0]
        charset = "iso-8859-1"
    if not word[3].isascii():
        return word[0]
    content = word[3].encode("ascii")
    if encoding == "Q":
        octets = _OCTET.sub(lambda octet: bytes.fromhex(octet[1].decode()), content.replace(b"_", b" "))
    else:
        try:
            octets = binascii.a2b_base64(content + b"=" * (-len(content) % 4))
        except binascii.Error:
            return word[0]
    try:
        return octets.decode(charset, "replace")
    except (LookupError, ValueError):  # iso-8859-12 was never made
        return word[0]
