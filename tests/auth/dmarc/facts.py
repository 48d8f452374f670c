"""What a DMARC test says about a message and about the DNS."""

from collections.abc import Iterable, Mapping

from gateway.auth.results import DkimResult, DkimStatus, SpfIdentity, SpfResult, SpfStatus
from gateway.dns.resolver import Answer, Missing, NotFound, Outcome, RecordType, Temporary, Trouble
from gateway.mail.address import Mailbox
from gateway.mail.author import Author

POSITION = 0


class Dns:
    """A DNS that is a table of DMARC records by domain, and remembers what it was asked.

    Args:
        dmarc: by domain: the TXT records at `_dmarc.<domain>`.
        trouble: domains whose DMARC record, or whose existence, cannot be looked up now.
        exist: domains that exist; those above a record do anyhow.
    """

    def __init__(
        self,
        dmarc: Mapping[str, str | bytes | Iterable[bytes]],
        *,
        trouble: Iterable[str] = (),
        exist: Iterable[str] = (),
    ) -> None:
        self._records = {f"_dmarc.{domain}": _texts(value) for domain, value in dmarc.items()}
        self._trouble = {f"_dmarc.{domain}" for domain in trouble} | set(trouble)
        self._exist = {*exist, *dmarc}
        self.asked: list[str] = []

    async def query(self, name: str, record_type: RecordType) -> Outcome:
        self.asked.append(name if record_type is RecordType.TXT else f"{record_type.value} {name}")
        if name in self._trouble:
            return Temporary(Trouble.SERVFAIL)
        if record_type is RecordType.TXT and name in self._records:
            return Answer(self._records[name], ttl=300, secure=False, name=name)
        exists = any(known == name or known.endswith(f".{name}") for known in self._exist)
        return NotFound(Missing.NODATA if exists else Missing.NXDOMAIN, ttl=300, secure=False)

    @property
    def domains_asked(self) -> list[str]:
        return [name.removeprefix("_dmarc.") for name in self.asked if name.startswith("_dmarc.")]


def _texts(value: str | bytes | Iterable[bytes]) -> tuple[bytes, ...]:
    match value:
        case str():
            return (value.encode(),)
        case bytes():
            return (value,)
        case _:
            return tuple(value)


def author(domain: str) -> Author:
    mailbox = Mailbox(local_part="jane", domain=domain, text=f"jane@{domain}")
    return Author(mailbox=mailbox, display_name="Jane", position=POSITION)


def spf(
    domain: str | None,
    status: SpfStatus = SpfStatus.PASS,
    identity: SpfIdentity = SpfIdentity.MAIL_FROM,
) -> SpfResult:
    return SpfResult(identity=identity, status=status, domain=domain)


def dkim(domain: str | None, status: DkimStatus = DkimStatus.PASS, *, whole: bool = True) -> DkimResult:
    return DkimResult(position=1, status=status, domain=domain, covers_whole_body=whole)
