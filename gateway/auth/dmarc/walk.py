"""The DNS tree walk (RFC 9989 §4.10): which names belong to one organization, and which of its records applies?

Nobody publishes where one owner's names end and the next one's begin. DMARC finds out by looking for policy records at
`_dmarc.` below a name and each of its parents, up to the top: eight queries at most, however long the name.

Three-valued on purpose: a name that could not be looked up may hold anything, so an answer that depends on it is
`Temporary`, never a guess. An answer that does not depend on it stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.auth.dmarc.record import PublishedRecord, UnusableRecord, read_record
from gateway.auth.results import DmarcRecord
from gateway.dns.resolver import Answer, NotFound, RecordType, Resolver, Temporary

MAX_PARENT_LABELS: Final = 7  # RFC 9989 §4.10 step 4: of a longer name, the parents above this are not asked


class Absent(StrEnum):
    """Why a name has no DMARC record."""

    NONE = "none"
    SEVERAL = "several"  # RFC 9989 §4.10 step 2: then all of them are discarded


Finding = PublishedRecord | Absent | Temporary


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """What DMARC policy discovery found for an author domain (RFC 9989 §4.10.1).

    Attributes:
        record: the record that applies, or why there is none.
        organizational_domain: None where it was not needed, because the author domain has its own record.
    """

    record: PublishedRecord | Absent
    organizational_domain: str | None


def names_to_query(domain: str) -> list[str]:
    """The names of a tree walk that starts at `domain`, in order; at most eight."""
    labels = domain.split(".")
    first_parent = max(1, len(labels) - MAX_PARENT_LABELS)
    return [domain, *(".".join(labels[start:]) for start in range(first_parent, len(labels)))]


def select_organizational_domain(start: str, published: Sequence[PublishedRecord]) -> str:
    """Choose from what a walk from `start` found, longest name first, up to the first `psd=y` or `psd=n` (§4.10.2)."""
    if not published:
        return start
    shortest = published[-1].domain
    if published[-1].public_suffix and shortest != start:
        above = shortest.count(".") + 1
        return ".".join(start.split(".")[-above - 1 :])
    return shortest


class TreeWalk:
    """The walks of one message. They share their lookups: each name is asked once."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._findings: dict[str, Finding] = {}

    async def discover(self, author_domain: str) -> Discovery | Temporary:
        """Find the record that applies to `author_domain`: its own, its organization's, its public suffix's (§4.10.1)."""
        own = await self._look(author_domain)
        match own:
            case Temporary():
                return own
            case DmarcRecord() | UnusableRecord():
                known = (
                    own.public_suffix is not None
                )  # either way the walk ends here, and this name is it (§4.10.2)
                return Discovery(record=own, organizational_domain=author_domain if known else None)
            case Absent():
                pass
        published = await self._walk(author_domain)
        if isinstance(published, Temporary):
            return published
        organizational_domain = select_organizational_domain(author_domain, published)
        # A record between the author domain and its organizational domain is found, and yet does not apply.
        for record in published:
            if record.domain == organizational_domain or record.public_suffix:
                return Discovery(record=record, organizational_domain=organizational_domain)
        several = any(self._findings[name] is Absent.SEVERAL for name in names_to_query(author_domain))
        return Discovery(
            record=Absent.SEVERAL if several else Absent.NONE, organizational_domain=organizational_domain
        )

    async def organizational_domain(self, domain: str) -> str | Temporary:
        """The organizational domain of `domain`, by a full tree walk (§4.10.2)."""
        published = await self._walk(domain)
        return (
            published if isinstance(published, Temporary) else select_organizational_domain(domain, published)
        )

    async def in_relaxed_alignment(self, one: str, other: str) -> bool | Temporary:
        """Whether both have the same organizational domain (§3.2.10.1), asking only for the names that decide it.

        An organizational domain is the name itself or one of its parents, so names without a common parent (or name) never
        align. Let C be the longest one in common. Both walks ask for the same names from C upwards, so:

        - a record at C that is not `psd=y` makes them one organization, whatever stands above C;
        - with `psd=y` at C they are two, or a public suffix and one of its customers;
        - without a record at C, any record above makes them one, and no record at all leaves each on its own;
        - but a `psd` tag below C ends that side's walk before it gets to C, and then they are two.

        What is common is asked first: a stranger's own names, and his broken servers, are then never asked at all.
        """
        if one == other:
            return True
        common = _common_parent(one, other)
        if not common:
            return False
        if common.count(".") >= MAX_PARENT_LABELS:  # the walk from a name below C jumps over C
            return await self._same_organization(one, other)
        shared = await self._has_organization(common)
        if shared is not True:
            return shared
        for side in (one, other):
            for name in names_to_query(side):
                if name == common:
                    break
                finding = await self._look(name)
                if isinstance(finding, Temporary):
                    return finding
                if not isinstance(finding, Absent) and finding.public_suffix is not None:
                    return False
        return True

    async def _has_organization(self, common: str) -> bool | Temporary:
        """Whether names below `common`, and it, are one organization unless something below it says otherwise."""
        for name in names_to_query(common):
            finding = await self._look(name)
            if isinstance(finding, Temporary):
                return finding
            if not isinstance(finding, Absent):
                return name != common or not finding.public_suffix
        return False

    async def _same_organization(self, one: str, other: str) -> bool | Temporary:
        first = await self.organizational_domain(one)
        if isinstance(first, Temporary):
            return first
        second = await self.organizational_domain(other)
        return second if isinstance(second, Temporary) else first == second

    async def _walk(self, domain: str) -> list[PublishedRecord] | Temporary:
        """What is published from `domain` upwards, to the first `psd=y` or `psd=n`.

        The first name that cannot be looked up ends it: any `psd` tag there would change the result.
        """
        published: list[PublishedRecord] = []
        for name in names_to_query(domain):
            finding = await self._look(name)
            if isinstance(finding, Temporary):
                return finding
            if isinstance(finding, Absent):
                continue
            published.append(finding)
            if finding.public_suffix is not None:
                break
        return published

    async def _look(self, domain: str) -> Finding:
        known = self._findings.get(domain)
        if known is None:
            known = self._findings[domain] = await self._query(domain)
        return known

    async def _query(self, domain: str) -> Finding:
        outcome = await self._resolver.query(f"_dmarc.{domain}", RecordType.TXT)
        match outcome:
            case Temporary():
                return outcome
            case NotFound():
                return Absent.NONE
            case Answer(records=records):
                texts = [text for text in records if isinstance(text, bytes)]
        published = [record for text in texts if (record := read_record(domain, text)) is not None]
        if len(published) > 1:
            return Absent.SEVERAL
        return published[0] if published else Absent.NONE


def _common_parent(one: str, other: str) -> str:
    """The longest name that is each of both or a parent of it; "" if not even the top label is the same."""
    labels: list[str] = []
    for label, same in zip(reversed(one.split(".")), reversed(other.split(".")), strict=False):
        if label != same:
            break
        labels.append(label)
    return ".".join(reversed(labels))
