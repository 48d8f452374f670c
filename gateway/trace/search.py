"""Finding traces by whatever an operator was told of one of them, among lines of very many."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from gateway.mail.envelope import Listener
from gateway.trace.addresses import AddressHider
from gateway.trace.document import mend
from gateway.trace.line import MAX_CHARACTERS, Line, TraceLine, bare, encode, fold, read_line
from gateway.verdict import Disposition


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFilter:
    """Which traces are wanted; all that is given must hold. Addresses compare without regard to case.

    Attributes:
        words: each must be the trace's id, queue-id, Message-ID, client, author, sender or recipient.
        sender, recipient, author: an address, or a domain, or `.example.com` for all below one; sender `<>` is the null path.
        client: the client's address.
        since, until: answered at or after, and before.
    """

    words: tuple[str, ...] = ()
    id: str | None = None
    queue_id: str | None = None
    message_id: str | None = None
    sender: str | None = None
    recipient: str | None = None
    author: str | None = None
    author_domain: str | None = None
    client: str | None = None
    disposition: Disposition | None = None
    rule: str | None = None
    listener: Listener | None = None
    since: datetime | None = None
    until: datetime | None = None


EVERYTHING: Final = TraceFilter()


@dataclass(frozen=True, slots=True)
class _Demand:
    """One thing that a line must be.

    Attributes:
        holds: whether it is.
        marks: one of these stands in the text of each line for which it holds; where there are none, only reading can tell.
    """

    holds: Callable[[Line], bool]
    marks: tuple[str, ...] = ()


class Search:
    """A filter, ready to be held against many lines.

    Args:
        hider: where addresses are kept hashed; those that are searched for are hashed, too.
    """

    def __init__(self, wanted: TraceFilter, hider: AddressHider | None = None) -> None:
        self._hider = hider
        self._demands = tuple(self._demands_of(wanted))
        self._marks = tuple(demand.marks for demand in self._demands if demand.marks)

    def among(self, text: str, *, last_key: int, newest_first: bool) -> Iterator[TraceLine]:
        """The lines of this text that are wanted. The last one has this key, the others those before it.

        Raises:
            ParseError: one of them is none of this release's.
        """
        if not self._may_be_in(text):
            return
        first_key = last_key - text.count("\n")
        lines = [each for each in enumerate(text.split("\n"), first_key) if self._may_be_in(each[1])]
        for key, line_text in reversed(lines) if newest_first else lines:
            line = read_line(line_text)
            if all(demand.holds(line) for demand in self._demands):
                yield TraceLine.of(line, key)

    def _may_be_in(self, text: str) -> bool:
        for marks in self._marks:
            for mark in marks:
                if mark in text:
                    break
            else:
                return False
        return True

    def _demands_of(self, wanted: TraceFilter) -> Iterator[_Demand]:
        for word in wanted.words:
            yield self._word(word)
        exact = {
            "id": wanted.id,
            "queue_id": wanted.queue_id,
            "message_id": wanted.message_id and bare(wanted.message_id),
            "author_domain": wanted.author_domain and wanted.author_domain.lower(),
            "client": wanted.client and wanted.client.lower(),
            "disposition": wanted.disposition,
            "rule": wanted.rule,
            "listener": wanted.listener,
        }
        for name, value in exact.items():
            if value is not None:
                yield _is(name, value)
        if wanted.sender is not None:
            yield _sender(self._addresses(wanted.sender))
        if wanted.author is not None:
            yield _author(self._addresses(wanted.author))
        if wanted.recipient is not None:
            yield _recipient(self._recipients(wanted.recipient))
        since, until = wanted.since, wanted.until
        if since is not None:
            yield _Demand(lambda line: line.at >= since)
        if until is not None:
            yield _Demand(lambda line: line.at < until)

    def _word(self, word: str) -> _Demand:
        """Whatever an operator was told: a part of a reply, of a log line, of a header, or an address."""
        text = bare(word)
        may_be = [
            _is("id", text),
            _is("queue_id", text),
            _is("message_id", text),
            _is("client", text.lower()),
        ]
        if "@" in text or "." in text:
            addresses = self._addresses(text)
            may_be += [_sender(addresses), _author(addresses), _recipient(self._recipients(text))]
        marks = tuple(dict.fromkeys(mark for each in may_be for mark in each.marks))
        return _Demand(lambda line: any(each.holds(line) for each in may_be), marks)

    def _addresses(self, text: str) -> "_Addresses":
        text = bare(text)
        if "@" in text or not text:
            return _Addresses(fold(self._hider.address(text) if self._hider else text), is_whole=True)
        domain = text.lower()
        return _Addresses(domain if domain.startswith(".") else f"@{domain}", is_whole=False)

    def _recipients(self, text: str) -> "_Addresses":
        """A recipient may be `Postmaster` without a domain (RFC 5321 §4.1.1.3)."""
        text = bare(text)
        return self._addresses(text) if "." in text or "@" in text else _Addresses(fold(text), is_whole=True)


@dataclass(frozen=True, slots=True)
class _Addresses:
    """One address, or all that end so."""

    text: str
    is_whole: bool = field(kw_only=True)

    def have(self, address: str | None) -> bool:
        """Whether this is one of them."""
        if address is None:
            return False
        return address == self.text if self.is_whole else address.endswith(self.text)

    @property
    def mark(self) -> str:
        """How they stand, or end, in a line."""
        mark = _mark(self.text)
        return mark if self.is_whole else mark[1:]


def _is(name: str, value: str) -> _Demand:
    wanted = mend(value[:MAX_CHARACTERS])
    return _Demand(lambda line: getattr(line, name) == wanted, (_mark(wanted),))


def _sender(addresses: _Addresses) -> _Demand:
    return _Demand(lambda line: addresses.have(line.sender), (addresses.mark,))


def _author(addresses: _Addresses) -> _Demand:
    return _Demand(lambda line: addresses.have(line.author), (addresses.mark,))


def _recipient(addresses: _Addresses) -> _Demand:
    return _Demand(lambda line: any(map(addresses.have, line.recipients)), (addresses.mark,))


def _mark(text: str) -> str:
    return encode(mend(text)).decode()
