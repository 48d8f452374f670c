"""The ARC Sets on a message and the chain that they form (RFC 8617 §4.1, §4.2): read, and nothing believed yet.

A set is three fields of one instance number: ARC-Authentication-Results says what its custodian found, ARC-Message-Signature
how the message left it, ARC-Seal binds both to all sets before. Doubt about which fields belong together is a broken chain.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.auth.dkim.signature import (
    Algorithm,
    parse_algorithm,
    parse_number,
    parse_signing_domain,
    required_tag,
)
from gateway.auth.dkim.tags import DkimError, decode_base64, parse_tags, without_white_space
from gateway.auth.results import Problem
from gateway.mail.authentication_results import MethodResult, parse_results
from gateway.mail.comments import skip_comments
from gateway.mail.errors import ParseError
from gateway.mail.message import Message

RESULTS_FIELD: Final = "ARC-Authentication-Results"
MESSAGE_FIELD: Final = "ARC-Message-Signature"
SEAL_FIELD: Final = "ARC-Seal"
FIELD_KEYS: Final = tuple(name.lower().encode() for name in (RESULTS_FIELD, MESSAGE_FIELD, SEAL_FIELD))

MAX_INSTANCE: Final = 50  # RFC 8617 §4.2.1

_RESULTS_KEY, _MESSAGE_KEY, _SEAL_KEY = FIELD_KEYS
_INSTANCE: Final = re.compile(r"[0-9]{1,2}")


class ChainValidation(StrEnum):
    """`cv=` (RFC 8617 §4.1.3): what the sealer found the chain before it to be."""

    NONE = "none"  # there was none: this is its beginning
    PASS = "pass"
    FAIL = "fail"  # broken; nothing may follow (§5.1.3)


class ArcError(ParseError):
    """A chain that cannot be, which token says so, and the instance and the cause where they are known."""

    def __init__(
        self, problem: Problem, message: str, *, instance: int | None = None, cause: Problem | None = None
    ) -> None:
        super().__init__(message)
        self.problem: Final = problem
        self.instance: Final = instance
        self.cause: Final = cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """What an ARC-Seal says (RFC 8617 §4.1.3)."""

    algorithm: Algorithm
    signature: bytes
    chain_validation: ChainValidation
    domain: str
    selector: str

    @property
    def key_name(self) -> str:
        """Where the public key is published: as a DKIM key."""
        return f"{self.selector}._domainkey.{self.domain}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFields:
    """One whole ARC Set.

    Attributes:
        results_position, message_position, seal_position: the places of its fields in `Message.fields`.
        results: what the custodian says that it found; None where that cannot be read in exactly one way.
        message_tags: the tags of the ARC-Message-Signature, not yet made sense of.
    """

    instance: int
    results_position: int
    message_position: int
    seal_position: int
    results: tuple[MethodResult, ...] | None
    message_tags: Mapping[str, str]
    seal: Seal


def has_chain(message: Message) -> bool:
    """Whether the message carries any field of ARC."""
    index = message.index
    return _SEAL_KEY in index or _MESSAGE_KEY in index or _RESULTS_KEY in index


def field_count(message: Message) -> int:
    """How many sets the message may have: the fields of the name that occurs most often."""
    return max(len(message.positions(key)) for key in FIELD_KEYS)


def read_chain(message: Message) -> tuple[SetFields, ...]:
    """Read the sets of a message, oldest first (RFC 8617 §5.2, steps 2 and 3).

    The caller has looked at `field_count` before: all fields are read, whatever their number.

    Raises:
        ArcError: they form no chain.
    """
    results = _by_instance(message, _RESULTS_KEY)
    signatures = _by_instance(message, _MESSAGE_KEY)
    seals = _by_instance(message, _SEAL_KEY)
    newest = max(results | signatures | seals)
    last_seal = seals.get(newest)
    if last_seal is not None and last_seal.tags.get("cv", "").lower() == ChainValidation.FAIL:
        raise ArcError(Problem.ARC_FAILED_BEFORE, "the last custodian found it broken", instance=newest)
    chain: list[SetFields] = []
    for instance in range(1, newest + 1):
        own_results, signature, seal = (found.get(instance) for found in (results, signatures, seals))
        if own_results is None or signature is None or seal is None:
            raise ArcError(Problem.ARC_STRUCTURE, "a set that is not whole", instance=instance)
        chain.append(
            SetFields(
                instance=instance,
                results_position=own_results.position,
                message_position=signature.position,
                seal_position=seal.position,
                results=own_results.results,
                message_tags=signature.tags,
                seal=_seal(seal.tags, instance),
            )
        )
    return tuple(chain)


def highest_instance(message: Message) -> int:
    """The highest instance number that any field of ARC names; 0 where none can be read."""
    return max(
        (
            found.instance
            for key in FIELD_KEYS
            for position in message.positions(key)
            if (found := _read_leniently(message, key, position)) is not None
        ),
        default=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """One field of ARC: where it stands, its number, and its content as far as that is read by then."""

    position: int
    instance: int
    tags: Mapping[str, str]
    results: tuple[MethodResult, ...] | None = None


def _by_instance(message: Message, key: bytes) -> dict[int, _Found]:
    found: dict[int, _Found] = {}
    for position in message.positions(key):
        field = _read(message, key, position)
        if field.instance in found:
            raise ArcError(Problem.ARC_STRUCTURE, "a field that is there twice", instance=field.instance)
        found[field.instance] = field
    return found


def _read(message: Message, key: bytes, position: int) -> _Found:
    if key == _RESULTS_KEY:
        return _read_results(message, position)
    try:
        tags = parse_tags(message.values[position])
    except DkimError as error:
        raise ArcError(Problem.ARC_INSTANCE, str(error), cause=error.problem) from error
    return _Found(position=position, instance=_instance(tags.get("i", "")), tags=tags)


def _read_leniently(message: Message, key: bytes, position: int) -> _Found | None:
    try:
        return _read(message, key, position)
    except ArcError:
        return None


def _read_results(message: Message, position: int) -> _Found:
    """`i=1; lists.example.org; dmarc=pass …` (RFC 8617 §4.1.1): the number must stand first."""
    try:
        text = message.unfolded(position).decode()
        at = _expect(text, skip_comments(text, 0), "i")
        at = _expect(text, at, "=")
        number = _INSTANCE.match(text, at)
        at = _expect(text, skip_comments(text, number.end() if number else at), ";")
    except (UnicodeDecodeError, ParseError) as error:
        raise ArcError(Problem.ARC_INSTANCE, f"no i= before the results: {error}") from error
    return _Found(
        position=position,
        instance=_instance(number[0] if number else ""),
        tags={},
        results=_results(text, at),
    )


def _results(text: str, start: int) -> tuple[MethodResult, ...] | None:
    try:
        return parse_results(text, start)
    except ParseError:
        return None


def _expect(text: str, at: int, wanted: str) -> int:
    """The place of the next word, after `wanted` and what may stand behind it."""
    if not text.startswith(wanted, at):
        raise ParseError(f"{wanted!r} is missing", offset=at)
    return skip_comments(text, at + len(wanted))


def _instance(text: str) -> int:
    number = int(text) if _INSTANCE.fullmatch(text) else 0
    if not 1 <= number <= MAX_INSTANCE:
        raise ArcError(Problem.ARC_INSTANCE, f"i= is not a number from 1 to {MAX_INSTANCE}")
    return number


def _seal(tags: Mapping[str, str], instance: int) -> Seal:
    try:
        seal = _read_seal(tags)
    except DkimError as error:
        raise ArcError(Problem.ARC_SEAL, str(error), instance=instance, cause=error.problem) from error
    wanted = ChainValidation.NONE if instance == 1 else ChainValidation.PASS
    if seal.chain_validation is not wanted:
        raise ArcError(Problem.ARC_CHAIN_VALIDATION, f"cv= is not {wanted}", instance=instance)
    return seal


def _read_seal(tags: Mapping[str, str]) -> Seal:
    if "h" in tags:  # §4.1.3: it must not be there, and makes the chain fail
        raise DkimError(Problem.DKIM_SYNTAX, "h= in an ARC-Seal")
    parse_number(tags, "t")  # nothing follows from it, but it must be a number
    return Seal(
        algorithm=parse_algorithm(tags),
        signature=decode_base64(without_white_space(required_tag(tags, "b"))),
        chain_validation=_chain_validation(required_tag(tags, "cv")),
        domain=parse_signing_domain(required_tag(tags, "d")),
        selector=parse_signing_domain(required_tag(tags, "s")),
    )


def _chain_validation(text: str) -> ChainValidation:
    try:
        return ChainValidation(text.lower())
    except ValueError as error:
        raise DkimError(Problem.DKIM_SYNTAX, "cv= is none of none, pass, fail") from error
