"""Signing what leaves (RFC 6376 §5): our domain puts its name to the mail of its own users, and to nobody else's.

A signature is made over the message as it will be handed on, our own edits included. All keys of the author's domain
sign side by side (RSA for everybody, Ed25519 for those who know it: RFC 8463); body and header are hashed once for all.
"""

import hashlib
from base64 import b64encode
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from gateway.auth.dkim.canonical import CRLF, Canonicalization, canonical_field
from gateway.auth.dkim.content import SignedContent, verify_signature
from gateway.auth.dkim.key_table import KeyTable, SigningKey
from gateway.auth.dkim.signature import Signature, parse_signature
from gateway.auth.dkim.tags import DkimError
from gateway.auth.dkim.verify import MAX_SIGNATURES, SIGNATURE_FIELD
from gateway.auth.results import MadeSignature, NotSigned, Signing
from gateway.mail.author import Author, NoAuthor
from gateway.mail.edits import EditedHeader, Edits, NewField
from gateway.mail.headers import break_text, fold_field
from gateway.mail.message import AMBIGUOUS, Message

FIELD_NAME: Final = "DKIM-Signature"

ALWAYS_SIGNED: Final = (
    b"from",
    b"to",
    b"cc",
    b"subject",
    b"reply-to",
    b"in-reply-to",
    b"references",
    b"mime-version",
    b"content-type",
    b"content-transfer-encoding",
)
"""Signed once more than they occur, 0 times included (RFC 6376 §5.4.2): whoever adds one breaks the signature.

With these a stranger who got hold of one signed message could make it say another thing, or have it answered to
another address. No honest relay adds any of them: see decision 9.
"""

SIGNED_IF_PRESENT: Final = (
    b"date",
    b"message-id",
    b"list-id",
    b"list-unsubscribe",
    b"list-unsubscribe-post",
    b"list-help",
    b"list-subscribe",
    b"list-post",
    b"list-owner",
    b"list-archive",
)
"""Likewise, but only where there is one: mail servers add a missing Date and Message-ID, mailing lists their own fields.

RFC 8058 §4 asks that both fields of one-click unsubscribing be signed.
"""

_RELAXED: Final = Canonicalization.RELAXED
_LISTINGS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """The fields to put in, in the order in which they are to stand, and what is said of them in logs and metrics."""

    fields: tuple[NewField, ...] = ()
    signing: Signing


class Signer:
    """Signs with the keys of one table. It holds no state of any message.

    Attributes:
        keys: the table; a reload makes a new signer.
    """

    def __init__(self, keys: KeyTable) -> None:
        self.keys: Final = keys

    def sign(
        self,
        message: Message,
        author: Author | NoAuthor,
        edits: Edits,
        *,
        now: float,
        own_results: Container[int] = (),
    ) -> Signed:
        """Sign a message of our own users or hosts: that it is one, the caller must know.

        Args:
            message: as received.
            author: what `find_author` said of it.
            edits: all else that will be changed in it.
            now: seconds since 1970.
            own_results: places in `Message.fields` of Authentication-Results in our own name.
        """
        if isinstance(author, NoAuthor):
            return _unsigned(NotSigned.NO_AUTHOR)
        domain = author.mailbox.domain
        keys = self.keys.keys_for(domain)
        if not keys:
            return _unsigned(NotSigned.NO_KEY)
        if message.defects & AMBIGUOUS:
            return _unsigned(NotSigned.AMBIGUOUS)
        if _came_unproven(message, own_results, domain):
            return _unsigned(NotSigned.NOT_PROVEN)
        content = SignedContent(message, ())
        header = EditedHeader(message, edits)
        if message.positions(SIGNATURE_FIELD):
            there = set(_good_signatures(message, content, header, keys, now))
            keys = tuple(key for key in keys if key.name not in there)
            if not keys:
                return _unsigned(NotSigned.ALREADY_SIGNED)
        fields = tuple(_make_signatures(content, header, keys, int(now)))
        made = tuple(
            MadeSignature(domain=key.domain, selector=key.selector, algorithm=key.algorithm) for key in keys
        )
        return Signed(fields=fields, signing=Signing(made=made))


def _unsigned(reason: NotSigned) -> Signed:
    return Signed(signing=Signing(reason=reason))


def _make_signatures(
    content: SignedContent, header: EditedHeader, keys: tuple[SigningKey, ...], now: int
) -> Iterator[NewField]:
    names, fields = signed_fields(header)
    listing = list_names(names)
    body_hash = b64encode(content.body(_RELAXED).whole).decode()
    header_hash = hashlib.sha256(b"".join(fields))
    for key in keys:
        tags = ["v=1;", f"a={key.algorithm};", "c=relaxed/relaxed;", f"d={key.domain};", f"s={key.selector};"]
        tags.append(f"t={now};")
        if key.expires_after_s is not None:
            tags.append(f"x={now + key.expires_after_s};")
        yield sign_field(FIELD_NAME, (tags, *listing, [f"bh={body_hash};"]), header_hash, key)


def sign_field(
    name: str, lines: Iterable[Sequence[str]], hashed_before: "hashlib._Hash", key: SigningKey
) -> NewField:
    """Write a field of tags that ends with its own signature (RFC 6376 §3.7); ARC's are made in the same way.

    Args:
        name: the field's.
        lines: all its tags but `b=`, as `fold_field` takes them.
        hashed_before: SHA-256 of all that is signed besides the field itself; it is not changed.
        key: signs.
    """
    lines = tuple(lines)
    # The field itself is hashed last, with b= empty and without its final CRLF. Whether b= then begins a line is the same
    # to the relaxed form.
    own = canonical_field(fold_field(name, *lines, ["b="]).to_bytes(), _RELAXED)
    digest = hashed_before.copy()
    digest.update(own.removesuffix(CRLF))
    signature = b64encode(key.sign(digest.digest())).decode()
    return fold_field(name, *lines, *([piece] for piece in break_text(f"b={signature}")))


def signed_fields(
    header: EditedHeader, *, as_they_are: Iterable[bytes] = ()
) -> tuple[tuple[bytes, ...], list[bytes]]:
    """What stands in `h=`, and what is hashed for it: of each name the lowest first (RFC 6376 §5.4.2).

    Args:
        header: as it will be handed on.
        as_they_are: further names, of which others may be added later.
    """
    names: list[bytes] = []
    fields: list[bytes] = []
    for key in as_they_are:
        found = header.named(key)
        names += (key,) * len(found)
        fields += (canonical_field(field, _RELAXED) for field in reversed(found))
    for always, keys in ((True, ALWAYS_SIGNED), (False, SIGNED_IF_PRESENT)):
        for key in keys:
            found = header.named(key)
            if found or always:
                names += (key,) * (len(found) + 1)
                fields += (canonical_field(field, _RELAXED) for field in reversed(found))
    return tuple(names), fields


@lru_cache(maxsize=_LISTINGS)
def list_names(names: tuple[bytes, ...]) -> tuple[tuple[str], ...]:
    """`h=`, line by line: most messages of a domain have the same fields."""
    return tuple((piece,) for piece in break_text(f"h={b':'.join(names).decode()};", after=":"))


def _came_unproven(message: Message, own_results: Container[int], author_domain: str) -> bool:
    """Whether our own stamp says that it came in from outside, for this author, and DMARC did not pass.

    An alias or a list hands such mail out again through the relay or `sendmail`, and there it looks like our own: signed,
    what pretended to be us at our front door would leave by the back door as proven. Where a list has put its own address
    into From, the stamp speaks of another author.
    """
    asked = f"header.from={author_domain}".encode()
    for position in message.positions(b"authentication-results"):
        if position not in own_results:
            continue  # another's word
        for result in message.unfolded(position).lower().split(b";"):
            words = result.split()
            if not words or not words[0].startswith(b"dmarc=") or words[0] == b"dmarc=pass":
                continue
            if asked in words or not any(word.startswith(b"header.from=") for word in words):
                return True  # of this author, or, where it could not be judged, of whom it does not say
    return False


def _good_signatures(
    message: Message,
    content: SignedContent,
    header: EditedHeader,
    keys: tuple[SigningKey, ...],
    now: float,
) -> Iterator[str]:
    """The names of those keys whose good signature the message bears: submission has signed it, say, before the relay.

    One that only looks like ours, or that was broken since, does not count.
    """
    by_name = {key.name: key for key in keys}
    for position in message.positions(SIGNATURE_FIELD)[:MAX_SIGNATURES]:
        signature = _read(message, position)
        key = by_name.get(f"{signature.terms.domain}/{signature.terms.selector}") if signature else None
        if (
            signature is None
            or key is None
            or header.touches({*signature.terms.signed_fields, SIGNATURE_FIELD})
        ):
            continue
        problem = signature.problem_at(now) or verify_signature(content, position, signature, key.record)
        if problem is None:
            yield key.name


def _read(message: Message, position: int) -> Signature | None:
    try:
        return parse_signature(message.values[position])
    except DkimError:
        return None
