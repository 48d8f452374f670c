"""The TXT record at `_mta-sts.<domain>`: there is a policy, and this is its version (RFC 8461 §3.1, erratum 6285)."""

import re
from typing import Final

from gateway.mail.errors import ParseError

MAX_RECORD_BYTES: Final = 2_048  # honest ones have fifty

_VERSION: Final = b"v=STSv1;"
_VERSION_AS_PRINTED: Final = re.compile(
    rb"v=STSv1[ \t]*;"
)  # the grammar before erratum 6285 allows blanks there
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9]{1,32}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_VALUE: Final = re.compile(r"[\x21-\x3a\x3c\x3e-\x7e]+")


class RecordError(ParseError):
    """It says v=STSv1 and cannot be read."""


def is_sts_record(text: bytes) -> bool:
    """Whether this TXT record is one: all others at the name are discarded (RFC 8461 §3.1)."""
    return text.startswith(_VERSION) or _VERSION_AS_PRINTED.match(text) is not None


def parse_record(text: bytes) -> str:
    """The policy's `id` out of a record, its strings already joined.

    Unknown fields are skipped, of a repeated one the first counts.

    Raises:
        RecordError: no valid record, so that the domain has no policy to be found (§3.1).
    """
    if len(text) > MAX_RECORD_BYTES:
        raise RecordError(f"{len(text)} bytes")
    if not is_sts_record(text):
        raise RecordError("does not begin with v=STSv1;")
    try:
        fields = text.decode("ascii").split(";")[1:]
    except UnicodeDecodeError as error:
        raise RecordError("is not ASCII", offset=error.start) from error
    if not fields[-1].strip(" \t"):  # one final delimiter
        del fields[-1]
    identifier: str | None = None
    for field in fields:
        name, equals, value = field.strip(" \t").partition("=")
        if not equals or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise RecordError(f"a field that is not name=value: {field[:40]!r}")
        if name == "id" and identifier is None:
            if not _IDENTIFIER.fullmatch(value):
                raise RecordError(f"id= is not 1 to 32 letters and digits: {value[:40]!r}")
            identifier = value
    if identifier is None:
        raise RecordError("has no id=")
    return identifier
