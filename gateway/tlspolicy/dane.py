"""DANE for SMTP (RFC 7672, 7671, 6698): a domain's signed DNS says which certificate or key its mail servers use.

It binds only where every step is vouched for by DNSSEC: the MX, the host's addresses, the TLSA records. Insecure is as if there
were none, because half of the world is not signed; a failure is not, because whoever can make a lookup fail could strip the
TLS off with it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key

from gateway.dns.resolver import Answer, NotFound, Outcome, RecordType, Resolver, Temporary, Tlsa
from gateway.dns.stub import Validation
from gateway.tlspolicy.model import TlsProblem

DANE_TA: Final = 2  # RFC 7218 §2.1
DANE_EE: Final = 3
CERTIFICATE: Final = 0  # RFC 7218 §2.2
PUBLIC_KEY: Final = 1
FULL: Final = 0  # RFC 7218 §2.3
DIGEST_BYTES: Final = {1: 32, 2: 64}  # SHA2-256, SHA2-512

MAX_TLSA: Final = 100  # of one host; a rollover of two keys under two usages has eight
MAX_TTL_S: Final = 86_400

ASK_AGAIN_S: Final = 30.0
"""How soon a resolver that did not tell whether it validates is asked again, and one that does not, in case it was mended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTlsa:
    """What DANE says of one mail server.

    Attributes:
        base_domain: under which the TLSA records stand; None: there are none that DNSSEC vouches for.
        records: the usable ones; none at all with a `base_domain`: TLS is demanded, of whomever (RFC 7672 §2.2).
        names: of the host, for usage 2: the base domain first.
        problem: what could not be looked up: nothing may be delivered to this host now.
        ttl: seconds for which this may be kept.
    """

    base_domain: str | None = None
    records: tuple[Tlsa, ...] = ()
    names: tuple[str, ...] = ()
    problem: TlsProblem | None = None
    ttl: int = MAX_TTL_S


async def find_tlsa(host: str, resolver: Resolver, *, port: int = 25) -> HostTlsa:
    """Look for the TLSA records of a host that a secure MX answer named (RFC 7672 §2.2.3).

    The addresses come first: servers of unsigned zones are known to fail on TLSA questions, so they are not asked one.
    """
    addresses = await _addresses(host, resolver)
    match addresses:
        case Temporary():
            return HostTlsa(problem=TlsProblem.DANE_ADDRESS_DNS, ttl=0)
        case NotFound():
            return HostTlsa(problem=TlsProblem.NO_ADDRESS, ttl=addresses.ttl)
        case Answer():
            pass
    ttl = addresses.ttl
    if addresses.secure:  # RFC 7672 §2.2.3: the name at the end of the CNAMEs, then the one in the MX
        candidates = [addresses.name, host] if addresses.name != host else [host]
    elif addresses.name == host:
        return HostTlsa(ttl=ttl)
    else:  # the alias may stand in a signed zone, though it leads out of it
        alias = await resolver.query(host, RecordType.CNAME)
        if isinstance(alias, Temporary):
            return HostTlsa(problem=TlsProblem.DANE_ADDRESS_DNS, ttl=0)
        if not alias.secure:
            return HostTlsa(ttl=min(ttl, alias.ttl))
        candidates = [host]
    return await _first_with_records(candidates, host, resolver, port=port, ttl=ttl)


async def _first_with_records(
    candidates: list[str], host: str, resolver: Resolver, *, port: int, ttl: int
) -> HostTlsa:
    for base_domain in candidates:
        outcome = await resolver.query(f"_{port}._tcp.{base_domain}", RecordType.TLSA)
        if isinstance(outcome, Temporary):  # RFC 7672 §2.1.2: never as if there were none
            return HostTlsa(problem=TlsProblem.DANE_TLSA_DNS, ttl=0)
        ttl = min(ttl, outcome.ttl)
        if isinstance(outcome, Answer) and outcome.secure:
            records = [record for record in outcome.records if isinstance(record, Tlsa)]
            return HostTlsa(
                base_domain=base_domain,
                records=usable(records[:MAX_TLSA]),
                names=tuple(dict.fromkeys((base_domain, host))),
                ttl=ttl,
            )
    return HostTlsa(ttl=ttl)


async def _addresses(host: str, resolver: Resolver) -> Outcome:
    """The first family that has an address, else the failure, else the absence."""
    first = await resolver.query(host, RecordType.A)
    if isinstance(first, Answer):
        return first
    second = await resolver.query(host, RecordType.AAAA)
    return first if isinstance(first, Temporary) and isinstance(second, NotFound) else second


def usable(records: list[Tlsa]) -> tuple[Tlsa, ...]:
    """The records that can vouch for a mail server (RFC 7672 §3.1.3: usage 0 and 1 cannot), strongest digests only.

    RFC 7671 §9: of the digests of one usage and selector only the strongest counts, so that a weak one is no way round it.
    """
    known = [record for record in records if _is_usable(record)]
    strongest = {
        (record.usage, record.selector): max(
            other.matching_type
            for other in known
            if (other.usage, other.selector) == (record.usage, record.selector)
        )
        for record in known
    }
    return tuple(
        record for record in known if record.matching_type in {FULL, strongest[record.usage, record.selector]}
    )


def _is_usable(record: Tlsa) -> bool:
    if record.usage not in {DANE_TA, DANE_EE} or record.selector not in {CERTIFICATE, PUBLIC_KEY}:
        return False
    if record.matching_type != FULL:
        return DIGEST_BYTES.get(record.matching_type) == len(record.data)
    if record.selector == CERTIFICATE:
        return load_certificate(record.data) is not None
    try:
        load_der_public_key(record.data)
    except (ValueError, UnsupportedAlgorithm):
        return False
    return True


def load_certificate(der: bytes) -> x509.Certificate | None:
    """A certificate whose names can be read (the library looks at them only when it is asked); None: it is none."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        hash((certificate.subject, certificate.issuer))
    except Exception:  # noqa: BLE001 - of the library's, on a stranger's bytes: it raises more than it says
        return None
    return certificate


class ValidationWatch:
    """Whether the resolver validates: asked at the first need, and again until it is known that it does.

    Args:
        check: asks it, see `StubResolver.check_validating`.
        now: a clock that never goes back, in seconds.
    """

    def __init__(
        self, check: Callable[[], Awaitable[Validation]], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._check = check
        self._now = now
        self._asked: float | None = None
        self._asking: asyncio.Task[None] | None = None
        self.known = Validation.UNKNOWN

    async def look(self) -> Validation:
        """What is known. Only the first askers wait for the answer, together; later it is asked beside them."""
        is_first = self._asked is None
        if self._asking is None and self._is_due():
            self._asking = asyncio.get_running_loop().create_task(self._ask())
        if is_first and self._asking is not None:
            await asyncio.shield(self._asking)
        return self.known

    async def aclose(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self) -> None:
        try:
            self.known = await self._check()
        finally:
            self._asked = self._now()
            self._asking = None

    def _is_due(self) -> bool:
        if self.known is Validation.YES:
            return False
        return self._asked is None or self._now() - self._asked >= ASK_AGAIN_S
