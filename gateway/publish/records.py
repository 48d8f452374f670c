"""One thing that a domain should publish: the records at one name, what they are for, and how they are written."""

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final, assert_never

from gateway.auth.spf.record import is_spf_record
from gateway.dns.resolver import Mx, Record, RecordType, Tlsa
from gateway.tlspolicy.mta_sts.record import is_sts_record
from gateway.tlspolicy.tlsrpt_record import is_tlsrpt_record

MAX_STRING_BYTES: Final = 255  # RFC 1035 §3.3: a character-string
_PRINTABLE: Final = range(0x20, 0x7F)


class Purpose(StrEnum):
    """What a record is for; the words are those of the output."""

    MX = "mx"
    SPF = "spf"
    DKIM = "dkim"
    DMARC = "dmarc"
    MTA_STS = "mta-sts"
    MTA_STS_HOST = "mta-sts-host"
    TLSRPT = "tlsrpt"
    TLSA = "tlsa"


OURS: Final = frozenset({Purpose.DKIM, Purpose.MTA_STS, Purpose.TLSRPT, Purpose.TLSA})
"""What nobody but the gateway can know rightly; the others may hold more than it knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Records of one type at one name.

    Attributes:
        name: in A-labels, without a final dot.
        records: none where something must be there that only the operator knows (the address of a web server).
        why: for the operator; one or two sentences.
    """

    purpose: Purpose
    name: str
    record_type: RecordType
    records: tuple[Record, ...]
    why: str


def is_of_purpose(purpose: Purpose, record: Record) -> bool:
    """Whether a record at the purpose's name is meant for it."""
    match purpose:
        case Purpose.SPF:
            return isinstance(record, bytes) and is_spf_record(record)
        case Purpose.DMARC:
            return isinstance(record, bytes) and record.lstrip().lower().startswith(b"v=dmarc1")
        case Purpose.MTA_STS:
            return isinstance(record, bytes) and is_sts_record(record)
        case Purpose.TLSRPT:
            return isinstance(record, bytes) and is_tlsrpt_record(record)
        case Purpose.DKIM:
            return isinstance(record, bytes) and b"p=" in record
        case Purpose.MX | Purpose.TLSA | Purpose.MTA_STS_HOST:
            return True
        case _:
            assert_never(purpose)


def presentation(record: Record) -> str:
    """A record's data as a master file has it (RFC 1035 §5.1)."""
    match record:
        case Mx():
            return f"{record.preference} {record.exchange}."
        case Tlsa():
            return f"{record.usage} {record.selector} {record.matching_type} {record.data.hex()}"
        case bytes():
            return " ".join(map(_quoted, split_strings(record)))
        case IPv4Address() | IPv6Address():
            return str(record)
        case str():
            return f"{record}."


def split_strings(text: bytes) -> list[bytes]:
    """A TXT record's text as strings of the greatest length, which readers join again (RFC 6376 §3.6.2.2)."""
    return [text[at : at + MAX_STRING_BYTES] for at in range(0, len(text), MAX_STRING_BYTES)] or [b""]


def _quoted(string: bytes) -> str:
    return '"' + "".join(map(_character, string)) + '"'


def _character(byte: int) -> str:
    if byte not in _PRINTABLE:
        return f"\\{byte:03d}"
    return f"\\{byte:c}" if byte in b'"\\' else chr(byte)
