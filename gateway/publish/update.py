"""Writing our records into their zones: RFC 2136 dynamic update, signed with TSIG (RFC 8945).

What stands at the zone's primary server is asked first. The update then names it as its prerequisite (RFC 2136 §2.4), so that
it is done only if nobody has changed it meanwhile: all records of a zone in one message, all or none. Afterwards the server is
asked again: a change counts when it is seen.

The only module that uses dnspython's network code: an update is no question that `gateway.dns` could ask.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdataset
import dns.rdatatype
import dns.rrset
import dns.tsig
import dns.update
from dns.rdtypes.ANY.CNAME import CNAME
from dns.rdtypes.ANY.MX import MX
from dns.rdtypes.ANY.TLSA import TLSA
from dns.rdtypes.ANY.TXT import TXT

from gateway.dns.names import name_from_labels
from gateway.dns.resolver import Mx, Record, RecordType, Tlsa
from gateway.keys.errors import PublishError, UnreachableError
from gateway.ops.config import DnsUpdateSettings
from gateway.publish.records import presentation

TIMEOUT_S: Final = 15.0

_SECRET: Final = "compare name, algorithm and secret of the TSIG key here and there ([dns_update] tsig_…)"
_ACCESS: Final = (
    "let this TSIG key update the zone there (knot: acl with action: update; BIND: update-policy)"
)


class Mode(StrEnum):
    """What becomes of records that stand there already."""

    REPLACE = "replace"  # ours takes the place of those of its kind
    ADD = "add"  # ours is put beside them
    IF_ABSENT = "if-absent"  # they stay, and ours is not needed


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What should stand at a name.

    Attributes:
        records: none, with REPLACE: those of their kind are taken away.
        is_of_kind: which of the records there are of the same kind; all others are left alone.
    """

    name: str
    record_type: RecordType
    records: tuple[Record, ...]
    mode: Mode
    is_of_kind: Callable[[Record], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an update would do at one name.

    Attributes:
        zone: the zone that holds the name.
        before: what stands there.
        after: what would.
        standing: `before` as the server has it, for the prerequisite; None: nothing.
    """

    wish: Wish
    zone: dns.name.Name
    before: tuple[Record, ...]
    after: tuple[Record, ...]
    standing: dns.rdataset.Rdataset | None

    @property
    def is_none(self) -> bool:
        """Whether everything is as it should be."""
        return set(self.before) == set(self.after)

    def lines(self) -> list[str]:
        """The difference, in the words of a master file: `- …`, `+ …`."""
        owner = f"{self.wish.name}. {self.wish.record_type}"
        gone = [record for record in self.before if record not in self.after]
        new = [record for record in self.after if record not in self.before]
        return [
            *(f"- {owner} {presentation(record)}" for record in gone),
            *(f"+ {owner} {presentation(record)}" for record in new),
        ]


class Primary:
    """The primary server of our zones.

    Args:
        settings: `[dns_update]`.
        secret: the TSIG key's, in base64.

    Raises:
        PublishError: the name or the secret cannot be a TSIG key's.
    """

    def __init__(self, settings: DnsUpdateSettings, secret: str) -> None:
        self._host, self._port = settings.server
        self._ttl = settings.ttl_s
        self._where = str(settings.server)
        self._zones: dict[dns.name.Name, dns.name.Name] = {}
        try:
            self._key = dns.tsig.Key(settings.tsig_name, secret, settings.tsig_algorithm)
        except (ValueError, dns.exception.DNSException) as error:
            raise PublishError(
                f"the TSIG key {settings.tsig_name} cannot be used: {error}; its secret is base64, as keymgr -t or tsig-keygen prints it"
            ) from error

    async def plan(self, wishes: Iterable[Wish]) -> tuple[Change, ...]:
        """Ask what stands there, and say what is to be changed.

        Raises:
            PublishError: the server gives no answer, or a name cannot be written to.
        """
        return tuple([await self._plan(wish) for wish in wishes])

    async def write(self, changes: Sequence[Change]) -> None:
        """Make the changes, and see that they are made; those that change nothing are left out.

        Raises:
            PublishError: they could not be made; of each zone either all are, or none is.
        """
        real = [change for change in changes if not change.is_none]
        for zone in dict.fromkeys(change.zone for change in real):
            await self._write_zone(zone, [change for change in real if change.zone == zone])
        for change in real:
            await self._verify(change)

    async def _plan(self, wish: Wish) -> Change:
        name = dns.name.from_text(f"{wish.name}.")
        zone = await self._zone_of(name)
        change = _change(wish, zone, await self._standing(name, wish))
        if change.before and not change.is_none and await self._is_synthesized(name, change):
            return _change(wish, zone, None)
        return change

    async def _is_synthesized(self, name: dns.name.Name, change: Change) -> bool:
        """Whether a wildcard answered for the name, at which nothing stands: updates see no wildcards (RFC 2136 §3.2).

        An update that has nothing but a prerequisite changes nothing, and tells.
        """
        probe = dns.update.UpdateMessage(change.zone)
        probe.absent(name, dns.rdatatype.from_text(change.wish.record_type))
        reply = await self._exchange(probe)
        match reply.rcode():
            case dns.rcode.NOERROR:
                return True
            case dns.rcode.YXRRSET:
                return False
            case refusal:
                raise PublishError(self._refusal(refusal, name))

    async def _zone_of(self, name: dns.name.Name) -> dns.name.Name:
        """The zone that holds the name: the one whose SOA the server shows with its answer (RFC 2308 §3)."""
        if name in self._zones:
            return self._zones[name]
        reply = await self._ask(name, dns.rdatatype.SOA)
        _refuse_alias(reply, name)
        owners = [
            rrset.name
            for rrset in (*reply.answer, *reply.authority)
            if rrset.rdtype == dns.rdatatype.SOA and name.is_subdomain(rrset.name)
        ]
        if not owners or not reply.flags & dns.flags.AA:
            raise PublishError(
                f"{self._where} holds no zone for {name}: give its primary server, or publish this record by hand"
            )
        self._zones[name] = owners[0]
        return owners[0]

    async def _standing(self, name: dns.name.Name, wish: Wish) -> dns.rdataset.Rdataset | None:
        reply = await self._ask(name, dns.rdatatype.from_text(wish.record_type))
        _refuse_alias(reply, name)
        rdtype = dns.rdatatype.from_text(wish.record_type)
        for rrset in reply.answer:
            if rrset.name == name and rrset.rdtype == rdtype:
                return rrset.to_rdataset()
        return None

    async def _ask(self, name: dns.name.Name, rdtype: dns.rdatatype.RdataType) -> dns.message.Message:
        query = dns.message.make_query(name, rdtype)
        reply = await self._exchange(query)
        if reply.rcode() not in {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}:
            raise PublishError(self._refusal(reply.rcode(), name))
        return reply

    async def _write_zone(self, zone: dns.name.Name, changes: Sequence[Change]) -> None:
        update = dns.update.UpdateMessage(zone)
        for change in changes:
            name = dns.name.from_text(f"{change.wish.name}.")
            rdtype = dns.rdatatype.from_text(change.wish.record_type)
            if change.standing is None:
                update.absent(name, rdtype)
            else:
                update.present(name, *change.standing)
            for rdata in change.standing or ():
                if _ours(rdata) not in change.after:
                    update.delete(name, rdata)
            for record in change.after:
                if record not in change.before:
                    update.add(name, self._ttl, _theirs(record))
        reply = await self._exchange(update)
        if reply.rcode() != dns.rcode.NOERROR:
            raise PublishError(self._refusal(reply.rcode(), zone))

    async def _verify(self, change: Change) -> None:
        standing = await self._standing(dns.name.from_text(f"{change.wish.name}."), change.wish)
        if {_ours(rdata) for rdata in standing or ()} != set(change.after):
            raise PublishError(
                f"{self._where} took the update of {change.wish.name} and does not show it: look at its log"
            )

    async def _exchange(self, message: dns.message.Message) -> dns.message.Message:
        """Send a signed message; the answer is signed, or says no.

        Raises:
            PublishError: there is none that can be believed.
        """
        message.use_tsig(self._key)
        reply = await self._send(message)
        # RFC 8945 §5.3: whatever is no refusal must be signed. Not every release of dnspython insists.
        if not reply.had_tsig and reply.rcode() == dns.rcode.NOERROR:
            raise PublishError(f"{self._where} gave an answer that cannot be believed: it is not signed")
        return reply

    async def _send(self, message: dns.message.Message) -> dns.message.Message:
        try:
            return await dns.asyncquery.tcp(message, self._host, timeout=TIMEOUT_S, port=self._port)
        except dns.tsig.PeerBadKey as error:  # knot says it of a key that it knows but does not let do this
            raise PublishError(
                f"{self._where} does not take the TSIG key {self._key.name} for {message.question[0].name}: {_SECRET}, then {_ACCESS}"
            ) from error
        except (dns.tsig.PeerBadSignature, dns.tsig.BadSignature) as error:
            raise PublishError(
                f"{self._where}: the TSIG secret is not the same here and there: {_SECRET}"
            ) from error
        except (dns.tsig.PeerBadTime, dns.tsig.BadTime) as error:
            raise PublishError(f"{self._where}: its clock and ours differ: set both by NTP") from error
        except dns.exception.Timeout as error:
            raise UnreachableError(
                f"{self._where} gave no answer in {TIMEOUT_S:.0f} s: is the server up, and does a firewall let TCP to it?"
            ) from error
        except (OSError, EOFError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or "it hung up"
            raise UnreachableError(f"{self._where} cannot be reached by TCP: {reason}; is it up?") from error
        except dns.exception.DNSException as error:
            raise PublishError(
                f"{self._where} gave an answer that cannot be believed: {type(error).__name__}: {error}"
            ) from error

    def _refusal(self, rcode: dns.rcode.Rcode, name: dns.name.Name) -> str:
        """What an error answer means here (RFC 2136 §2.2, RFC 8945 §5.3)."""
        match rcode:
            case dns.rcode.NOTAUTH:
                says = f"is not the primary server of it, or does not know the TSIG key; {_SECRET}"
            case dns.rcode.REFUSED:
                says = f"refuses; {_ACCESS}"
            case dns.rcode.YXDOMAIN | dns.rcode.YXRRSET | dns.rcode.NXRRSET | dns.rcode.NXDOMAIN:
                says = "somebody else changed it in this moment; run the command again"
            case dns.rcode.NOTIMP:
                says = "does not take updates; turn them on there, or give another server"
            case _:
                says = f"answers {dns.rcode.to_text(rcode)}; look at its log"
        return f"{self._where}: {name}: {says}"


def _refuse_alias(reply: dns.message.Message, name: dns.name.Name) -> None:
    """Beside a CNAME nothing can stand; a server would ignore the update without a word (RFC 2136 §3.4.2.2).

    Raises:
        PublishError: the name is an alias.
    """
    for rrset in reply.answer:
        if rrset.name == name and isinstance(rrset[0], CNAME):
            raise PublishError(
                f"{name} is an alias of {rrset[0].target}: take the CNAME away, or publish the record there by hand"
            )


def _change(wish: Wish, zone: dns.name.Name, standing: dns.rdataset.Rdataset | None) -> Change:
    before = tuple(_ours(rdata) for rdata in standing or ())
    return Change(wish=wish, zone=zone, before=before, after=_wanted_after(wish, before), standing=standing)


def _wanted_after(wish: Wish, before: tuple[Record, ...]) -> tuple[Record, ...]:
    of_kind = [record for record in before if wish.is_of_kind(record)]
    match wish.mode:
        case Mode.REPLACE:
            kept = [record for record in before if record not in of_kind]
            return tuple(dict.fromkeys((*kept, *wish.records)))
        case Mode.ADD:
            return tuple(dict.fromkeys((*before, *wish.records)))
        case Mode.IF_ABSENT:
            return before if of_kind else (*before, *wish.records)


def _ours(rdata: dns.rdata.Rdata) -> Record:
    """A record of dnspython as one of ours."""
    match rdata:
        case TXT():
            return b"".join(rdata.strings)
        case MX():
            return Mx(rdata.preference, name_from_labels(rdata.exchange.labels))
        case TLSA():
            return Tlsa(rdata.usage, rdata.selector, rdata.mtype, rdata.cert)
        case _:
            raise PublishError(
                f"a record of type {dns.rdatatype.to_text(rdata.rdtype)} is none of ours to write"
            )


def _theirs(record: Record) -> dns.rdata.Rdata:
    match record:
        case bytes():
            kind = dns.rdatatype.TXT
        case Mx():
            kind = dns.rdatatype.MX
        case Tlsa():
            kind = dns.rdatatype.TLSA
        case _:
            raise PublishError("an address is none of ours to write")
    return dns.rdata.from_text(dns.rdataclass.IN, kind, presentation(record))
