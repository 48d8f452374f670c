"""The DMARC Policy Record (RFC 9989 §4.7, §4.8): what a domain's owner asks of those who receive mail in its name.

It is a TXT record at `_dmarc.<domain>`: `v=DMARC1; p=reject; rua=mailto:reports@example.org`. A typing error in one tag
costs that tag, but one in a policy (`p`, `sp`, `np`) costs them all: nobody may be refused mail for a policy that was
never clearly asked for.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_to_bytes

from gateway.auth.results import Alignment, DmarcPolicy, DmarcRecord
from gateway.mail.errors import ParseError

MAX_TAGS: Final = 64  # ours: eleven are registered; what follows these is not read
MAX_REPORT_ADDRESSES: Final = 10  # ours, per tag: each may cost a lookup and a mail (RFC 9990 §4)
MAX_URI_BYTES: Final = 512  # ours: the longest address takes 319
MAX_CACHED_BYTES: Final = (
    1024  # ours: longer records are parsed each time, so that nobody fills our memory with them
)

_WSP: Final = b" \t"

# ABNF strings ignore case, but RFC 9989 §4.8 marks this one value as case-sensitive. No white space may come first.
_VERSION: Final = re.compile(rb"[vV][ \t]*=[ \t]*DMARC1[ \t]*(?:;|\Z)")

# RFC 3986, with `,` and `!` percent-encoded; an obsolete size limit (`!10m`) may follow, and is ignored (RFC 9989 §4.8).
_REPORT_URI: Final = re.compile(
    rb"([A-Za-z][A-Za-z0-9+.-]*):((?:[A-Za-z0-9._~:/?#\[\]@$&'()*+;=-]|%[0-9A-Fa-f]{2})+)(?:![0-9]+[kmgtKMGT]?)?"
)
# What may stand in RCPT TO without quotes: a report goes to nothing more exotic (RFC 5321 §4.1.2).
_LOCAL_PART: Final = re.compile(rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_DOMAIN: Final = re.compile(
    rb"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z][A-Za-z0-9-]{0,61}[A-Za-z0-9]"
)

_POLICIES: Final = {policy.value.encode(): policy for policy in DmarcPolicy}
_ALIGNMENTS: Final = {alignment.value.encode(): alignment for alignment in Alignment}
_PUBLIC_SUFFIX: Final = {b"y": True, b"n": False}  # "u", the default, and nonsense: None
_FAILURE_OPTIONS: Final = frozenset((b"0", b"1", b"d", b"s"))
_TAGS: Final = frozenset(
    (b"p", b"sp", b"np", b"adkim", b"aspf", b"fo", b"psd", b"t", b"rua", b"ruf")
)  # RFC 9989 §4.7


class NotDmarcError(ParseError):
    """The text does not begin with the version tag: to DMARC it does not exist (RFC 9989 §4.10)."""


class UnusablePolicyError(ParseError):
    """A DMARC record whose policy cannot be known: DMARC ends here for the message (RFC 9989 §4.10.1)."""


@dataclass(frozen=True, slots=True)
class UnusableRecord:
    """A DMARC record that asks for nothing, but is still there for the tree walk to find.

    Attributes:
        domain: where it was found.
        public_suffix: its `psd` tag.
    """

    domain: str
    public_suffix: bool | None


PublishedRecord = DmarcRecord | UnusableRecord


def parse_record(domain: str, text: bytes) -> DmarcRecord:
    """Read the record that was found for `domain`.

    Raises:
        NotDmarcError: it is no DMARC record.
        UnusablePolicyError: it is one without a usable policy, and without an address that reports could go to.
    """
    match read_record(domain, text):
        case DmarcRecord() as record:
            return record
        case UnusableRecord():
            raise UnusablePolicyError("p, sp or np is missing or not a policy, and rua has no usable URI")
        case None:
            raise NotDmarcError("the first tag is not v=DMARC1", offset=0)


def read_record(domain: str, text: bytes) -> PublishedRecord | None:
    """Read one TXT record as the tree walk needs it; None: to DMARC it does not exist. Never raises."""
    return _read_cached(domain, text) if len(text) <= MAX_CACHED_BYTES else _read(domain, text)


def ignored_tags(text: bytes) -> tuple[str, ...]:
    """The tags of a record that mean nothing, as `name=value`: those that RFC 9989 no longer has, and misspelt ones."""
    version = _VERSION.match(text)
    tags = _split_tags(text[version.end() :]) if version else {}
    return tuple(
        f"{name.decode('latin-1')}={value.decode('latin-1')}"
        for name, value in tags.items()
        if name not in _TAGS
    )


def unusable_report_uris(text: bytes) -> tuple[str, ...]:
    """What stands in `rua` and `ruf` and is no address that a report could go to, as published."""
    version = _VERSION.match(text)
    tags = _split_tags(text[version.end() :]) if version else {}
    uris = [uri for tag in (b"rua", b"ruf") if tag in tags for uri in tags[tag].split(b",")]
    return tuple(uri.strip(_WSP).decode("latin-1") for uri in uris if not _report_addresses(uri)[0])


def _read(domain: str, text: bytes) -> PublishedRecord | None:
    version = _VERSION.match(text)
    if version is None:
        return None
    tags = _split_tags(text[version.end() :])
    public_suffix = _PUBLIC_SUFFIX.get(tags.get(b"psd", b"").lower())
    aggregate_to, has_report_uri = _report_addresses(tags.get(b"rua", b""))
    policies = {name: _POLICIES.get(tags[name].lower()) for name in (b"p", b"sp", b"np") if name in tags}
    policy = policies.get(b"p")
    if policy is None or None in policies.values():
        # RFC 9989 §4.10.1. Its §4.7 reads an absent `p` as "none" outright, but sends the reader here for the how.
        if not has_report_uri:
            return UnusableRecord(domain, public_suffix)
        policy, policies = DmarcPolicy.NONE, {}
    failure_to, _ = _report_addresses(tags.get(b"ruf", b""))
    return DmarcRecord(
        domain=domain,
        policy=policy,
        subdomain_policy=policies.get(b"sp"),
        nonexistent_policy=policies.get(b"np"),
        dkim_alignment=_ALIGNMENTS.get(tags.get(b"adkim", b"").lower(), Alignment.RELAXED),
        spf_alignment=_ALIGNMENTS.get(tags.get(b"aspf", b"").lower(), Alignment.RELAXED),
        public_suffix=public_suffix,
        testing=tags.get(b"t", b"").lower() == b"y",
        aggregate_to=aggregate_to,
        failure_to=failure_to,
        failure_options=_failure_options(tags.get(b"fo", b"")) if failure_to else "0",
    )


_read_cached = lru_cache(maxsize=4096)(_read)


def _split_tags(text: bytes) -> dict[bytes, bytes]:
    """Tag names in lower case and their values; a tag without a value that can be known has the value `b""`.

    Deviation: RFC 6376 §3.2 throws the whole list away where a tag occurs twice; RFC 9989 §4.8 has an error cost its tag
    only, and a record that says the same thing twice is not in doubt.
    """
    tags: dict[bytes, bytes] = {}
    for part in text.split(b";", MAX_TAGS)[:MAX_TAGS]:
        name, equals, value = part.partition(b"=")
        if not equals:
            continue
        name, value = name.strip(_WSP).lower(), value.strip(_WSP)
        tags[name] = value if tags.setdefault(name, value) == value else b""
    return tags


def _report_addresses(uris: bytes) -> tuple[tuple[str, ...], bool]:
    """The addresses of the `mailto:` URIs, and whether the list has any URI at all that is syntactically valid."""
    addresses: dict[str, None] = {}
    has_uri = False
    for part in uris.split(b",", MAX_REPORT_ADDRESSES)[:MAX_REPORT_ADDRESSES]:
        text = part.strip(_WSP)
        uri = _REPORT_URI.fullmatch(text) if len(text) <= MAX_URI_BYTES else None
        if uri is None:
            continue
        scheme, rest = uri.groups()
        if (
            scheme.lower() != b"mailto"
        ):  # RFC 9989 §4.7: other schemes are valid, and ignored where not supported
            has_uri = True
        elif address := _address(rest):
            has_uri = True
            addresses[address] = None
    return tuple(addresses), has_uri


def _address(rest: bytes) -> str | None:
    """The one address of a mailto URI (RFC 6068 §2), without its header fields; None if a report could not go there."""
    local_part, at, domain = unquote_to_bytes(rest.partition(b"?")[0]).rpartition(b"@")
    if not at or len(local_part) > 64 or len(domain) > 253:  # noqa: PLR2004 - RFC 5321 §4.5.3.1
        return None
    if _LOCAL_PART.fullmatch(local_part) is None or _DOMAIN.fullmatch(domain) is None:
        return None
    return f"{local_part.decode('ascii')}@{domain.decode('ascii').lower()}"


def _failure_options(value: bytes) -> str:
    """`fo` in lower case; its default where the list is not one of RFC 9989 §4.8."""
    options = value.lower().split(b":", len(_FAILURE_OPTIONS))
    chosen = set(options)
    if len(chosen) != len(options) or not chosen <= _FAILURE_OPTIONS or {b"0", b"1"} <= chosen:
        return "0"
    return b":".join(options).decode("ascii")
