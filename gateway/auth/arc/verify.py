"""The check: does the chain of custody hold (RFC 8617 §5.2)?

A pass says that the sets are those which their sealers made, and that the message is as the last of them let it go. It
says nothing of whether any of them is honest: that is the operator's to know (`gateway.auth.arc.custody`).
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final

from gateway.auth.arc.sets import (
    MAX_INSTANCE,
    SEAL_FIELD,
    ArcError,
    Seal,
    SetFields,
    field_count,
    has_chain,
    read_chain,
)
from gateway.auth.dkim.canonical import CRLF, relaxed_header, without_signature
from gateway.auth.dkim.content import SignedContent, verify_signature
from gateway.auth.dkim.key import MIN_TRUSTED_RSA_BITS, KeyRecord
from gateway.auth.dkim.lookup import KeyLookup, KeyMemory
from gateway.auth.dkim.signature import Algorithm, Signature, message_signature
from gateway.auth.dkim.tags import DkimError
from gateway.auth.dkim.verify import refusal_of_all
from gateway.auth.results import ArcResult, ArcSet, ArcStatus, Problem
from gateway.auth.trouble import is_trouble
from gateway.dns.resolver import Resolver
from gateway.mail.message import Message

MAX_INSTANCES: Final = 10
"""Honest mail passes two or three custodians; each costs two signatures."""

NO_CHAIN: Final = ArcResult(status=ArcStatus.NONE)


async def check_arc(
    message: Message,
    resolver: Resolver,
    *,
    now: float,
    max_instances: int = MAX_INSTANCES,
    memory: KeyMemory | None = None,
) -> ArcResult:
    """Verify the chain of a message.

    Args:
        message: as received.
        resolver: asked once for each key, one after the other.
        now: seconds since 1970.
        memory: of keys; see `KeyLookup`.
        max_instances: a message that carries more fields of one name than this is `fail` unread.
    """
    if not has_chain(message):
        return NO_CHAIN
    if field_count(message) > min(max_instances, MAX_INSTANCE):
        return ArcResult(status=ArcStatus.FAIL, problem=Problem.ARC_TOO_MANY)
    if refusal := refusal_of_all(message):
        return ArcResult(status=ArcStatus.FAIL, problem=Problem.ARC_MESSAGE_SIGNATURE, cause=refusal)
    try:
        chain = read_chain(message)
    except ArcError as error:
        return ArcResult(
            status=ArcStatus.FAIL, problem=error.problem, cause=error.cause, failed_instance=error.instance
        )
    return await _Verification(message, chain, KeyLookup(resolver, memory), now).result()


class _Verification:
    """One chain of good form, being verified."""

    def __init__(self, message: Message, chain: Sequence[SetFields], keys: KeyLookup, now: float) -> None:
        self._message = message
        self._chain = chain
        self._keys = keys
        self._now = now
        self._signatures = {fields.instance: _message_signature(fields) for fields in chain}
        self._content = SignedContent(
            message, [found for found in self._signatures.values() if isinstance(found, Signature)]
        )

    async def result(self) -> ArcResult:
        newest = self._chain[-1]
        if cause := await self._message_problem(newest):
            return self._broken(Problem.ARC_MESSAGE_SIGNATURE, newest.instance, cause)
        digests = list(seal_digests(self._message, self._chain))
        for fields, digest in zip(reversed(self._chain), reversed(digests), strict=True):
            if cause := await self._seal_problem(fields.seal, digest):
                return self._broken(Problem.ARC_SEAL, fields.instance, cause)
        return ArcResult(
            status=ArcStatus.PASS, sets=_custodians(self._chain), oldest_pass=await self._oldest_pass()
        )

    def _broken(self, problem: Problem, instance: int, cause: Problem) -> ArcResult:
        """Deviation: §5.2.1 makes a DNS failure final. The key may be had at the next attempt, so here it is not."""
        temporary = is_trouble(cause)
        return ArcResult(
            status=ArcStatus.TEMPERROR if temporary else ArcStatus.FAIL,
            sets=_custodians(self._chain),
            problem=cause if temporary else problem,
            cause=None if temporary else cause,
            failed_instance=instance,
        )

    async def _oldest_pass(self) -> int:
        """The oldest instance whose message signature still fits, 0 where all do (§5.2 step 5)."""
        for fields in reversed(self._chain[:-1]):
            if await self._message_problem(fields):
                return fields.instance + 1
        return 0

    async def _message_problem(self, fields: SetFields) -> Problem | None:
        """What is wrong with a message signature. One that only DKIM would call `policy` is no proof here either."""
        signature = self._signatures[fields.instance]
        if isinstance(signature, Problem):
            return signature
        if problem := signature.problem_at(self._now):
            return problem
        key = await self._keys.fetch(signature.terms.key_name)
        if isinstance(key, Problem):
            return key
        return verify_signature(self._content, fields.message_position, signature, key)

    async def _seal_problem(self, seal: Seal, digest: bytes) -> Problem | None:
        if seal.algorithm is Algorithm.RSA_SHA1:
            return Problem.DKIM_SHA1
        key = await self._keys.fetch(seal.key_name)
        if isinstance(key, Problem):
            return key
        return _verify_seal(seal, key, digest)


def seal_digests(message: Message, chain: Sequence[SetFields]) -> Iterator[bytes]:
    """The hash that each seal signs, oldest first: all sets up to its own, its own `b=` empty (§5.1.1).

    Each builds upon the one before, so that all together are one pass over the fields of the chain.
    """
    so_far = hashlib.sha256()
    for fields in chain:
        others = (fields.results_position, fields.message_position)
        so_far.update(relaxed_header([(message.keys[at], message.values[at]) for at in others]))
        signed = so_far.copy()
        key, value = message.keys[fields.seal_position], message.values[fields.seal_position]
        signed.update(relaxed_header([(key, without_signature(value))]).removesuffix(CRLF))
        yield signed.digest()
        so_far.update(relaxed_header([(key, value)]))


def _verify_seal(seal: Seal, key: KeyRecord, digest: bytes) -> Problem | None:
    if not key.fits(seal.algorithm):
        return Problem.DKIM_KEY_ALGORITHM
    if not key.verifies(seal.signature, digest):
        return Problem.DKIM_SIGNATURE
    if seal.algorithm is Algorithm.RSA_SHA256 and key.bits < MIN_TRUSTED_RSA_BITS:
        return Problem.DKIM_SHORT_KEY  # RFC 8301 §3.2
    return None


def _message_signature(fields: SetFields) -> Signature | Problem:
    try:
        signature = message_signature(fields.message_tags, auid=None)
    except DkimError as error:
        return error.problem
    if SEAL_FIELD.lower().encode() in signature.terms.signed_fields:
        return Problem.DKIM_SYNTAX  # §4.1.2: the seal is made after it
    return signature


def _custodians(chain: Sequence[SetFields]) -> tuple[ArcSet, ...]:
    return tuple(
        ArcSet(instance=fields.instance, sealer=fields.seal.domain, results=fields.results)
        for fields in reversed(chain)
    )
