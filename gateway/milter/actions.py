"""What a milter tells the mail server to do about a message, made from a Verdict.

The header edits are those that the SMTP proxy makes, in the milter's words: it has no offsets, only "the second field of
this name", counted without regard to case. So removals come first, from the last occurrence up, and every number still
means what it meant when the message was judged; new fields go in last, at the very top.
"""

from dataclasses import dataclass
from typing import Final, assert_never

from gateway.mail.edits import Edits
from gateway.mail.message import Message
from gateway.mail.reply import Reply
from gateway.verdict import Disposition, Verdict

MAX_REPLY_LINES: Final = 32  # libmilter takes no more, and the client is to hear the same whoever speaks
MAX_REPLY_LINE: Final = 480
"""Characters of one reply line. RFC 5321 §4.5.3.1.5 leaves 506 beside the code; libmilter takes 980, `%` counted double."""

MAX_REASON: Final = 200


@dataclass(frozen=True, slots=True)
class DeleteHeader:
    """Take out the `occurrence`-th field of this name, counted from 1 at the top."""

    name: str
    occurrence: int


@dataclass(frozen=True, slots=True)
class InsertHeader:
    """Put a field above all others; the value begins with its blank, and its lines end with LF."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Accept the message and put it on hold, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Accept:
    """Let it through as edited."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Reject or defer, as the code says.

    Attributes:
        code: three digits.
        enhanced: RFC 3463; None for none.
        lines: as they go over the wire: printable ASCII, each `%` doubled.
    """

    code: str
    enhanced: str | None
    lines: tuple[str, ...]

    @property
    def is_permanent(self) -> bool:
        """5xx: reject; otherwise it is a 4xx."""
        return self.code.startswith("5")


Edit = DeleteHeader | InsertHeader | Quarantine
Action = Edit | Accept | Refuse


def plan(verdict: Verdict, message: Message, *, hold: bool) -> tuple[Action, ...]:
    """What to do, in this order; the last is always Accept or Refuse.

    Args:
        verdict: the engine's answer for `message`.
        message: what its edits' places refer to.
        hold: whether QUARANTINE means the mail server's hold queue; otherwise the header mark alone says it.
    """
    match verdict.disposition:
        case Disposition.ACCEPT:
            return (*_edits(verdict.edits, message), Accept())
        case Disposition.QUARANTINE:
            held = (Quarantine(f"rule={verdict.rule}"[:MAX_REASON]),) if hold else ()
            return (*_edits(verdict.edits, message), *held, Accept())
        case Disposition.DEFER | Disposition.REJECT:
            if verdict.reply is None:  # Verdict itself refuses to be made so
                raise ValueError(f"{verdict.disposition} without a reply")
            return (refuse(verdict.reply),)
        case unknown:
            assert_never(unknown)


def refuse(reply: Reply) -> Refuse:
    """The reply as REPLYCODE has it, and `smfi_setmlreply` takes it; a reply that is no refusal is a mistake of ours."""
    if reply.is_positive:
        raise ValueError(f"{reply} refuses nothing")
    lines = tuple(_escape(line) for line in reply.lines[:MAX_REPLY_LINES])
    return Refuse(str(reply.code), reply.enhanced, lines)


def _edits(edits: Edits, message: Message) -> tuple[Edit, ...]:
    if not edits:
        return ()
    deletions = tuple(_deletion(message, position) for position in sorted(edits.remove, reverse=True))
    # Each goes to the top, so the last comes first.
    insertions = tuple(
        InsertHeader(new.name, " " + new.value.replace("\r\n", "\n")) for new in reversed(edits.prepend)
    )
    return (*deletions, *insertions)


def _deletion(message: Message, position: int) -> DeleteHeader:
    field = message.fields[position]
    if not field.key:
        raise ValueError(
            "a line that is no field has no name to delete it by; no mail server hands one to a milter"
        )
    occurrence = message.positions(field.key).index(position) + 1
    return DeleteHeader(field.key.decode("ascii"), occurrence)


def _escape(line: str) -> str:
    # Our Reply is printable ASCII already; a tab is the one control character that it lets pass.
    return line.replace("\t", " ")[:MAX_REPLY_LINE].replace("%", "%%")
