"""Sealing what we let in (RFC 8617 §5.1): whoever gets the message after us can see what we found, if he believes us.

The set is made last, over the message as it will be handed on: our results, a signature over header and body, and a seal over
the chain. A chain that did not hold is closed with `cv=fail`; one that could not be judged is left as it is.
"""

import hashlib
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from gateway.auth.arc.sets import (
    FIELD_KEYS,
    MAX_INSTANCE,
    MESSAGE_FIELD,
    SEAL_FIELD,
    ChainValidation,
    highest_instance,
    read_chain,
)
from gateway.auth.dkim.canonical import Canonicalization, canonical_field
from gateway.auth.dkim.content import SignedContent
from gateway.auth.dkim.key_table import KeyFault, KeyTableError, SigningEntry, SigningKey, load_key_table
from gateway.auth.dkim.sign import list_names, sign_field, signed_fields
from gateway.auth.dkim.signature import Algorithm
from gateway.auth.results import ArcResult, ArcStatus, Problem
from gateway.mail.authentication_results import as_arc_results
from gateway.mail.edits import EditedHeader, Edits, NewField
from gateway.mail.message import AMBIGUOUS, Message

MAX_SIGNED_NAMES: Final = 200
"""A message that would need a longer `h=` is not sealed: no honest one has so many fields of the same names."""

_RELAXED: Final = Canonicalization.RELAXED
_CLOSED: Final = frozenset({Problem.ARC_FAILED_BEFORE, Problem.ARC_TOO_MANY})
"""Nothing is added where the last sealer has closed the chain (§5.1 step 2), nor where we have not looked at it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """The set that was added.

    Attributes:
        fields: in the order in which they are to stand: the seal on top.
        chain_validation: what it says of the chain before it.
    """

    fields: tuple[NewField, ...]
    chain_validation: ChainValidation


class Sealer:
    """Seals with one key. It holds no state of any message. `key` is RSA: `load_seal_key` sees to that."""

    def __init__(self, key: SigningKey) -> None:
        self.key: Final = key

    def seal(
        self, message: Message, edits: Edits, results: NewField, arc: ArcResult, *, now: float
    ) -> Sealed | None:
        """Seal a stranger's message; None where nothing may be added, or nothing true could be said.

        Args:
            message: as received.
            edits: all else that will be changed in it.
            results: our Authentication-Results, which are among the edits.
            arc: what `check_arc` said of this message.
            now: seconds since 1970.
        """
        found = _chain_validation(arc)
        if found is None or message.defects & AMBIGUOUS:
            return None
        instance = highest_instance(message) + 1
        if instance > MAX_INSTANCE:
            return None
        header = EditedHeader(message, edits)
        names, signed = signed_fields(header, as_they_are=(b"dkim-signature",))  # §4.1.2
        if len(names) > MAX_SIGNED_NAMES:
            return None
        own_results = as_arc_results(results, instance)
        # §4.1.2 and §5.1.1: `i=` is no identity here, and a seal has neither `h=` nor `bh=`.
        who = [
            f"a={self.key.algorithm};",
            f"d={self.key.domain};",
            f"s={self.key.selector};",
            f"t={int(now)};",
        ]
        body_hash = b64encode(SignedContent(message, ()).body(_RELAXED).whole).decode()
        own_signature = sign_field(
            MESSAGE_FIELD,
            ([f"i={instance};", *who, "c=relaxed/relaxed;"], *list_names(names), [f"bh={body_hash};"]),
            hashlib.sha256(b"".join(signed)),
            self.key,
        )
        # §5.1.2: a broken chain has no order that all would agree on, so the seal that closes it covers its own set alone.
        older = () if found is ChainValidation.FAIL else _older_fields(message)
        chain = hashlib.sha256(b"".join(older))
        for field in (own_results, own_signature):
            chain.update(canonical_field(field.to_bytes(), _RELAXED))
        seal = sign_field(SEAL_FIELD, ([f"i={instance};", f"cv={found};", *who],), chain, self.key)
        return Sealed(fields=(seal, own_signature, own_results), chain_validation=found)


def load_seal_key(entry: SigningEntry) -> SigningKey:
    """Read the key to seal with.

    Raises:
        KeyTableError: it cannot be used.
    """
    (key,) = load_key_table([entry]).keys
    if key.algorithm is not Algorithm.RSA_SHA256:
        fault = KeyFault(
            entry=entry,
            what="is an Ed25519 key, and ARC is verified with rsa-sha256 only",
            remedy="give an RSA key; the one that signs for the same domain will do",
        )
        raise KeyTableError([fault])
    return key


def _chain_validation(arc: ArcResult) -> ChainValidation | None:
    """What our seal says of the chain before it; None: there must be none."""
    match arc.status:
        case ArcStatus.NONE:
            return ChainValidation.NONE
        case ArcStatus.PASS:
            return ChainValidation.PASS
        case ArcStatus.FAIL:
            return None if arc.problem in _CLOSED else ChainValidation.FAIL
        case ArcStatus.TEMPERROR:
            return None  # whoever comes next may get the key; `cv=fail` would be for good


def _older_fields(message: Message) -> Iterable[bytes]:
    """The fields of a chain that holds, as they are sealed."""
    if not any(message.positions(key) for key in FIELD_KEYS):
        return
    for fields in read_chain(message):
        for position in (fields.results_position, fields.message_position, fields.seal_position):
            yield canonical_field(message.field_bytes(position), _RELAXED)
