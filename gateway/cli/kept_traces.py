"""Reading our own traces again: the facts that the rules saw, out of the evidence, session and envelope that a trace keeps.

A trace has the checks' own results, so that it knows more than a log line: recipients, the client's name. It has nothing of the
body and no header; what only these could tell is unknown, and so is a whole address where only its hash is kept.
"""

from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Final

from gateway.cli.recalled import Passed, Recalled
from gateway.mail.address import Mailbox, parse_mailbox
from gateway.mail.author import Author, AuthorFault, NoAuthor
from gateway.mail.envelope import Envelope, Recipient
from gateway.mail.errors import ParseError
from gateway.policy.facts import KEYS, Case, Fact, Kind, fact_words
from gateway.store.traces import Traces
from gateway.trace.addresses import MARK
from gateway.trace.document import read_document
from gateway.trace.model import Trace
from gateway.verdict import Disposition, Stage

_OURS_BY_NAME: Final = "gateway."
_STAGES: Final = tuple(Stage)
_OF_THE_MESSAGE: Final = frozenset({"defect", "size_over"})
"""What is found in the message itself."""

_FROM_CHECKS: Final = {"spf", "spf_helo", "iprev", "client_name", "sender_domain"}
"""Before the message is there a check may not have been made yet: then its result says nothing."""


def read_traces(traces: Traces, sealers: Collection[str], passed: Passed) -> Iterator[Recalled]:
    """Every message that is kept, newest first; `sealers`: the config's `[arc] trusted_sealers`.

    Raises:
        StoreError: they cannot be read.
    """
    for document in traces.documents():
        try:
            trace = read_document(document)
        except ParseError:
            passed.broken += 1
            continue
        yield recall(trace, sealers)


def recall(trace: Trace, sealers: Collection[str]) -> Recalled:
    """What a trace says of its message."""
    is_by_rules = trace.rule is not None and not trace.rule.startswith(_OURS_BY_NAME)
    return Recalled(
        id=trace.id,
        rule=trace.rule or "",
        disposition=trace.disposition or Disposition.ACCEPT,
        facts=known_facts(trace, sealers) if is_by_rules else {},
        is_by_rules=is_by_rules,
        recipients=_recipients(trace) or (),
    )


def known_facts(trace: Trace, sealers: Collection[str]) -> dict[str, Fact]:
    """What it says of the keys that rules ask about; what it does not say, or not beyond doubt, is not there."""
    unknown: set[str] = set(_OF_THE_MESSAGE)
    recipients = _recipients(trace)
    if recipients is None:
        unknown.add("recipient")
    sender = _mailbox(trace.mail_from) if trace.mail_from else None
    if trace.mail_from and sender is None:
        unknown.add("mail_from")
    author = _author(trace)
    if author is None:
        unknown |= {"author", "author_fault"}
    case = Case(
        envelope=Envelope(
            id=trace.id,
            session=trace.session,
            mail_from=sender,
            recipients=tuple(Recipient(mailbox=each) for each in recipients or ()),
        ),
        evidence=trace.evidence,
        author=author,
        trusted_sealers=frozenset(sealers),
    )
    stage = _STAGES.index(trace.stage)
    facts = {
        name: key.find(case)
        for name, key in KEYS.items()
        if name not in unknown and _STAGES.index(key.known_at) <= stage
    }
    if trace.stage is not Stage.MESSAGE:
        return {name: fact for name, fact in facts.items() if fact or name not in _FROM_CHECKS}
    if facts["arc_trusted"]:  # whom a sealer's words were about is not kept
        del facts["arc_dmarc"]
    if trace.size is not None:
        facts["size_over"] = trace.size
    for name in ("defect", "arc_dmarc"):
        if name not in facts and (words := trace.facts.get(name)) is not None:
            with suppress(ParseError):  # "3 more", or a word of another release
                facts[name] = _fact_of(words, KEYS[name].kind)
    return facts


def _fact_of(words: str, kind: Kind) -> Fact:
    """What a rule asked for, and did not take the message by, stands in the trace in words."""
    if words == fact_words(kind.absent):
        return kind.absent
    return kind.parse_fact(words.split(", ") if kind.absent is not None else words)


def _mailbox(text: str) -> Mailbox | None:
    """The address; None where only its hash is kept, or less than all of it."""
    try:
        mailbox = parse_mailbox(text)
    except ParseError:
        return None
    return None if mailbox.local_part.startswith(MARK) else mailbox


def _author(trace: Trace) -> Author | NoAuthor | None:
    if trace.author_fault is not None:
        known = trace.author_fault in list(AuthorFault)  # another release may have had other words
        return NoAuthor(AuthorFault(trace.author_fault), ()) if known else None
    mailbox = _mailbox(trace.author) if trace.author else None
    return None if mailbox is None else Author(mailbox, None, 0)


def _recipients(trace: Trace) -> tuple[Mailbox | None, ...] | None:
    """Those who were to get the message; None where not all are known.

    Before there is a message a rule is asked of one of them, and which one is only plain where there was no other.
    """
    asked = trace.recipients
    if trace.more_recipients or (trace.stage is Stage.RCPT and len(asked) != 1):
        return None
    if trace.stage is Stage.MESSAGE:
        asked = tuple(each for each in asked if not each.is_refused)
    found = tuple(_mailbox(each.address) if "@" in each.address else None for each in asked)
    is_whole = all(each is not None or "@" not in asked[at].address for at, each in enumerate(found))
    return found if is_whole else None
