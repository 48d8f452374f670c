"""Our seals: foreign verifiers take them, whatever the message and whoever sealed before; what must not be sealed is not."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.auth.arc import check_arc
from gateway.auth.arc.seal import MAX_SIGNED_NAMES, Sealed, Sealer, load_seal_key
from gateway.auth.arc.sets import ChainValidation
from gateway.auth.dkim.key_table import KeyTableError, SigningEntry, SigningKey
from gateway.auth.results import ArcResult, ArcStatus, Problem
from gateway.dns.resolver import Trouble
from gateway.dns.zone import ZoneResolver
from gateway.mail.authentication_results import MethodResult, Property, write_authentication_results
from gateway.mail.edits import Edits, apply_edits
from gateway.mail.headers import FOLD_AT
from gateway.mail.message import Message
from tests.auth.arc.chains import SEALERS, Custodian, chain, world
from tests.auth.arc.test_oracles import SEALABLE, foreign_seal, foreign_status
from tests.auth.dkim.signing import BODY, HEADER, MESSAGE, NOW, Signer, ed25519_pem, rsa_key, rsa_pem

NONE, PASS, FAIL = ChainValidation.NONE, ChainValidation.PASS, ChainValidation.FAIL
RESULTS = write_authentication_results(
    "mx.example.net", [MethodResult("dmarc", "pass", None, (Property("header", "from", "example.org"),))]
)
STAMPED = Edits(prepend=(RESULTS,))


def sealer(domain: str = "forward.example") -> Sealer:
    return Sealer(
        SigningKey(
            domain=domain, selector="rsa", subdomains=False, expires_after_s=None, private_key=rsa_key(2048)
        )
    )


async def seal(
    raw: bytes,
    edits: Edits = STAMPED,
    *,
    domain: str = "forward.example",
    resolver: ZoneResolver | None = None,
) -> Sealed | None:
    message = Message(raw)
    arc = await check_arc(message, resolver or world(), now=NOW)
    return sealer(domain).seal(message, edits, RESULTS, arc, now=NOW)


async def handed_on(raw: bytes, edits: Edits = STAMPED, *, domain: str = "forward.example") -> bytes:
    sealed = await seal(raw, edits, domain=domain)
    assert sealed is not None
    both = Edits(prepend=(*edits.prepend, *sealed.fields), remove=edits.remove)
    return b"".join(apply_edits(Message(raw), both))


async def check(raw: bytes) -> ArcResult:
    return await check_arc(Message(raw), world(), now=NOW)


@pytest.mark.parametrize("raw", SEALABLE.values(), ids=SEALABLE)
async def test_a_new_chain_on_any_message(raw: bytes) -> None:
    sent = await handed_on(raw)

    result = await check(sent)
    assert (result.status, result.oldest_pass) == (ArcStatus.PASS, 0)
    assert result.sets[0].sealer == "forward.example"
    assert [(one.method, one.result) for one in result.sets[0].results or ()] == [("dmarc", "pass")]
    assert foreign_status(sent) is ArcStatus.PASS


async def test_what_stands_in_the_set() -> None:
    sealed = await seal(MESSAGE)

    assert sealed is not None
    assert [field.name for field in sealed.fields] == [
        "ARC-Seal",
        "ARC-Message-Signature",
        "ARC-Authentication-Results",
    ]
    seal_field, signature, results = (field.to_bytes().decode() for field in sealed.fields)
    assert seal_field.startswith(
        "ARC-Seal: i=1; cv=none; a=rsa-sha256; d=forward.example; s=rsa; t=1760000000;"
    )
    assert "h=from:from:to:to:cc:subject:subject:" in signature.replace("\r\n    ", "")
    assert "authentication-results" not in signature
    assert results == (
        "ARC-Authentication-Results: i=1; mx.example.net;\r\n    dmarc=pass header.from=example.org\r\n"
    )
    for line in (seal_field + signature).split("\r\n"):
        assert len(line) <= FOLD_AT


@settings(max_examples=40, deadline=None)
@given(
    raw=st.sampled_from([raw for name, raw in SEALABLE.items() if name != "100 KB"]),
    before=st.lists(
        st.tuples(st.sampled_from(SEALERS), st.sampled_from(["ours", "dkimpy", "odd"])), max_size=4
    ),
)
async def test_a_chain_goes_on_whoever_sealed_before(raw: bytes, before: list[tuple[str, str]]) -> None:
    for number, (domain, by) in enumerate(before):
        match by:
            case "ours":
                raw = await handed_on(raw, domain=domain)
            case "dkimpy":
                raw = foreign_seal(raw, domain, "arc=pass; " if number else "", f"mx{number}.example")
            case _:
                raw = chain(raw, Custodian(domain=domain, signed="from:subject"))

    sent = await handed_on(raw)

    result = await check(sent)
    assert (result.status, result.oldest_pass) == (ArcStatus.PASS, 0)
    assert [one.sealer for one in result.sets] == ["forward.example", *(name for name, _ in reversed(before))]
    assert foreign_status(sent) is ArcStatus.PASS


async def test_our_set_is_over_the_message_as_it_leaves() -> None:
    """A field that is taken out is not signed, one that is put in is."""
    raw = b"Subject: Pay now\r\nX-Mark: x\r\n" + MESSAGE
    edits = Edits(prepend=(RESULTS,), remove=frozenset({0, 1}))

    sent = await handed_on(raw, edits)

    assert b"Pay now" not in sent
    assert (await check(sent)).status is ArcStatus.PASS
    assert foreign_status(sent) is ArcStatus.PASS


async def test_results_beyond_ascii_are_sealed_as_they_stand() -> None:
    found = (Property("smtp", "mailfrom", "jörg@bücher.example"),)
    results = write_authentication_results("mx.example.net", [MethodResult("spf", "pass", None, found)])
    message = Message(MESSAGE)
    sealed = sealer().seal(
        message, Edits(prepend=(results,)), results, ArcResult(status=ArcStatus.NONE), now=NOW
    )
    assert sealed is not None

    sent = b"".join(apply_edits(message, Edits(prepend=(results, *sealed.fields))))

    assert "jörg".encode() in sent
    assert (await check(sent)).status is ArcStatus.PASS
    assert foreign_status(sent) is ArcStatus.PASS


async def test_every_dkim_signature_is_covered_and_more_may_be_added() -> None:
    sent = await handed_on(Signer().sign(Signer(selector="ed").sign(MESSAGE)))

    assert (await check(b"DKIM-Signature: v=1; x\r\n" + sent)).status is ArcStatus.PASS
    broken = sent.replace(b"s=ed;", b"s=ad;")
    assert (await check(broken)).cause is Problem.DKIM_SIGNATURE


@pytest.mark.parametrize("name", [b"From", b"Subject", b"To", b"Reply-To", b"Content-Type"])
async def test_nobody_can_add_what_the_reader_is_shown(name: bytes) -> None:
    sent = await handed_on(MESSAGE)

    assert (await check(name + b": x@evil.example\r\n" + sent)).status is ArcStatus.FAIL


BROKEN = {
    "the message was altered": chain(MESSAGE, Custodian(), Custodian()).replace(b"Joe.", b"Eve."),
    "the seals are not theirs": chain(MESSAGE, Custodian(), Custodian()).replace(
        b"dmarc=pass", b"dmarc=fail"
    ),
    "a set is not whole": b"ARC-Seal: i=2; x=y\r\n" + Custodian().seal(MESSAGE),
    "a field is there twice": b"ARC-Authentication-Results: i=1; mx\r\n" + Custodian().seal(MESSAGE),
    "a number cannot be read": b"ARC-Seal: nonsense\r\n" + Custodian().seal(MESSAGE),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_chain_is_closed_by_a_seal_of_its_own(name: str) -> None:
    raw = BROKEN[name]

    sealed = await seal(raw)

    assert sealed is not None
    assert sealed.chain_validation is FAIL
    alone = b"".join(field.to_bytes() for field in sealed.fields) + MESSAGE
    assert b"cv=fail" in alone
    sent = b"".join(apply_edits(Message(raw), Edits(prepend=sealed.fields)))
    result = await check(sent)
    assert (result.status, result.sets) == (ArcStatus.FAIL, ())


async def test_a_closing_seal_covers_its_own_set_alone() -> None:
    """RFC 8617 section 5.1.2; told by what verifies where the older sets are gone."""
    sealed = await seal(BROKEN["the message was altered"])
    assert sealed is not None
    fields = b"".join(field.to_bytes() for field in sealed.fields)
    assert b"i=3; cv=fail" in fields

    result = await check(fields + MESSAGE)
    assert result.problem is Problem.ARC_FAILED_BEFORE
    assert foreign_status(fields + MESSAGE.replace(b"Joe.", b"Eve.")) is ArcStatus.FAIL


async def test_what_is_not_sealed() -> None:
    closed = chain(MESSAGE, Custodian(), Custodian(cv="fail", alone=True))
    assert await seal(closed) is None, "it was closed before (RFC 8617 section 5.1)"
    assert await seal(chain(MESSAGE, *[Custodian()] * 11)) is None, "it was not followed to its end"
    unknown = world(lists_example=Trouble.TIMEOUT)
    assert await seal(Custodian().seal(MESSAGE), resolver=unknown) is None, "nothing is known of it"
    assert await seal(b"no field\r\n" + MESSAGE) is None, "readers differ in what it is"
    assert await seal(b"To: x\r\n" * MAX_SIGNED_NAMES + HEADER + b"\r\n" + BODY) is None, "no honest message"


async def test_there_is_no_set_after_the_fiftieth() -> None:
    last = Custodian(instance=50).seal(MESSAGE)
    passed = ArcResult(status=ArcStatus.FAIL, problem=Problem.ARC_STRUCTURE)

    assert sealer().seal(Message(last), STAMPED, RESULTS, passed, now=NOW) is None


@settings(max_examples=200)
@given(st.binary(max_size=300))
async def test_any_bytes_are_sealed_or_not(raw: bytes) -> None:
    sealed = await seal(b"From: a@example.org\r\n" + raw + b"\r\n\r\nHi\r\n")

    assert sealed is None or len(sealed.fields) == 3


def entry(path: Path) -> SigningEntry:
    return SigningEntry(domain="example.net", selector="2026a", key_path=path, subdomains=False)


def test_the_key_is_rsa(tmp_path: Path) -> None:
    path = tmp_path / "seal.pem"
    path.write_bytes(rsa_pem())
    path.chmod(0o600)
    assert load_seal_key(entry(path)).name == "example.net/2026a"

    path.write_bytes(ed25519_pem())
    with pytest.raises(KeyTableError, match="is an Ed25519 key, and ARC is verified with rsa-sha256 only"):
        load_seal_key(entry(path))
