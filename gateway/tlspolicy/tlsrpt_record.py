"""The TXT record at `_smtp._tls.<domain>`: where reports go of TLS sessions that failed (RFC 8460 §3)."""

import re
from typing import Final

from gateway.mail.errors import ParseError

MAX_RECORD_BYTES: Final = 2_048
MAX_URIS: Final = 10

_VERSION: Final = re.compile(r"v=TLSRPTv1[ \t]*(?:;|\Z)")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_MAILTO: Final = re.compile(r"mailto:[^@\s,;!]{1,192}@[A-Za-z0-9.-]{1,253}", re.IGNORECASE)
_HTTPS: Final = re.compile(r"https://[\x21-\x2b\x2d-\x3a\x3c-\x7e]{1,512}", re.IGNORECASE)


class TlsrptRecordError(ParseError):
    """It says v=TLSRPTv1 and cannot be read."""


def is_tlsrpt_record(text: bytes) -> bool:
    """Whether this TXT record is one: all others at the name are discarded (RFC 8460 §3)."""
    return _VERSION.match(text[:MAX_RECORD_BYTES].decode("latin-1")) is not None


def parse_tlsrpt_record(text: bytes) -> tuple[str, ...]:
    """The URIs of `rua`, mailto and https, at least one; unknown fields are skipped.

    Raises:
        TlsrptRecordError: no record, or one with nothing that a report can go to.
    """
    if len(text) > MAX_RECORD_BYTES:
        raise TlsrptRecordError(f"{len(text)} bytes")
    if not is_tlsrpt_record(text):
        raise TlsrptRecordError("does not begin with v=TLSRPTv1;")
    try:
        fields = text.decode("ascii").split(";")[1:]
    except UnicodeDecodeError as error:
        raise TlsrptRecordError("is not ASCII", offset=error.start) from error
    values: dict[str, str] = {}
    for field in fields:
        name, equals, value = field.strip(" \t").partition("=")
        if equals and _NAME.fullmatch(name.rstrip(" \t")):
            values.setdefault(name.rstrip(" \t"), value.strip(" \t"))
        elif name:
            raise TlsrptRecordError(f"a field that is not name=value: {field[:40]!r}")
    if "rua" not in values:
        raise TlsrptRecordError("has no rua=")
    uris = [uri.strip(" \t") for uri in values["rua"].split(",", MAX_URIS)[:MAX_URIS]]
    for uri in uris:
        if not (_MAILTO.fullmatch(uri) or _HTTPS.fullmatch(uri)):
            raise TlsrptRecordError(f"rua= has what is neither mailto: nor https: {uri[:60]!r}")
    return tuple(uris)
