import dataclasses
import mmap
import tempfile

import pytest

from gateway.auth.dkim import check_dkim
from gateway.auth.dkim.canonical import Canonicalization
from gateway.auth.dkim.signature import Algorithm
from gateway.auth.dkim.verify import STATUS
from gateway.auth.results import DkimResult, DkimStatus, Problem
from gateway.dns.resolver import Outcome, RecordType, Trouble
from gateway.dns.zone import ZoneResolver
from gateway.mail.message import Message
from tests.auth.dkim.signing import (
    BODY,
    HEADER,
    MESSAGE,
    NOW,
    Signer,
    ed25519_public,
    rsa_public,
    rsa_public_pkcs1,
    zone,
)

SIMPLE, RELAXED = Canonicalization.SIMPLE, Canonicalization.RELAXED
ED25519 = Signer(algorithm=Algorithm.ED25519_SHA256, selector="ed")
SHORT = Signer(selector="short", short=True)
BODY_BYTES = len(b"Hi.\r\n\r\nWe lost the game. Are you hungry yet?\r\n\r\nJoe.\r\n")  # in relaxed form


async def only(raw: bytes, resolver: ZoneResolver | None = None, *, now: float = NOW) -> DkimResult:
    (result,) = await check_dkim(Message(raw), resolver or zone(), now=now)
    return result


def signed(**tags: str | None) -> bytes:
    return Signer(tags=tags).sign(MESSAGE)


@pytest.mark.parametrize("header", list(Canonicalization))
@pytest.mark.parametrize("body", list(Canonicalization))
@pytest.mark.parametrize("signer", [Signer(), ED25519])
async def test_a_good_signature_passes(
    signer: Signer,
    header: Canonicalization,
    body: Canonicalization,
) -> None:
    result = await only(dataclasses.replace(signer, header=header, body=body).sign(MESSAGE))

    assert (result.status, result.problem) == (DkimStatus.PASS, None)
    assert result.canonicalization == f"{header}/{body}"
    assert (result.domain, result.selector, result.auid) == ("example.org", signer.selector, "@example.org")
    assert result.key_bits == (2048 if signer.selector == "rsa" else 256)
    assert result.counts_for_dmarc


async def test_a_message_without_signatures_has_no_results() -> None:
    assert await check_dkim(Message(MESSAGE), zone(), now=NOW) == ()


GOOD = [
    (Signer(signed="from:from:to:subject:date:cc:cc"), "oversigned: listed more often than present"),
    (Signer(signed=" From : TO :\r\n\tSubject"), "white space and folding around the colons, any case"),
    (Signer(signed="from:dkim-signature"), "its own field does not count as one of the listed"),
    (Signer(tags={"i": "joe@mail.example.org"}), "i= in a subdomain"),
    (Signer(tags={"i": "joe=40mail=2Eexample.org"}), "i= in quoted-printable"),
    (Signer(tags={"i": "@EXAMPLE.org", "d": "Example.ORG"}), "names have no case"),
    (Signer(tags={"q": "http/x : dns/txt"}), "dns/txt among the query methods"),
    (Signer(tags={"x": f"{NOW + 1:.0f}", "t": f"{NOW - 9:.0f}"}), "not yet expired"),
    (Signer(tags={"t": f"{NOW + 299:.0f}"}), "a clock that is a little ahead"),
    (Signer(tags={"unknown_1": "a b=c", "z": "From:b=1|b=2"}), "unknown tags; b= within a value"),
    (Signer(tags={"a": "RSA-SHA256", "c": "Relaxed/RELAXED"}), "ABNF literals have no case"),
    (Signer(length=BODY_BYTES), "l= of just the body's length"),
    (Signer(header=SIMPLE, body=SIMPLE, tags={"c": None}), "c= is simple/simple where absent"),
    (Signer(body=SIMPLE, tags={"c": "relaxed"}), "the second half of c= is simple where absent"),
]


@pytest.mark.parametrize(("signer", "why"), GOOD)
async def test_good(signer: Signer, why: str) -> None:
    result = await only(signer.sign(MESSAGE))

    assert (result.status, result.problem) == (DkimStatus.PASS, None), why


BAD = [
    (signed(v="2"), DkimStatus.NEUTRAL, Problem.DKIM_VERSION, "an unknown version"),
    (signed(v="01"), DkimStatus.NEUTRAL, Problem.DKIM_VERSION, "compared as a string"),
    (signed(v=None), DkimStatus.NEUTRAL, Problem.DKIM_MISSING_TAG, "from before RFC 4871"),
    (signed(bh="AAAA"), DkimStatus.NEUTRAL, Problem.DKIM_SYNTAX, "a hash of another length"),
    (signed(bh="!"), DkimStatus.NEUTRAL, Problem.DKIM_SYNTAX, "not base64"),
    (signed(a="rsa-sha512"), DkimStatus.NEUTRAL, Problem.DKIM_ALGORITHM_UNKNOWN, "an unknown algorithm"),
    (signed(c="nowsp"), DkimStatus.NEUTRAL, Problem.DKIM_CANONICALIZATION_UNKNOWN, "an unknown form"),
    (signed(q="http"), DkimStatus.NEUTRAL, Problem.DKIM_QUERY_METHOD_UNKNOWN, "keys not in the DNS"),
    (signed(x="9", t="10"), DkimStatus.NEUTRAL, Problem.DKIM_SYNTAX, "expired before it was made"),
    (signed(x="9", t="9"), DkimStatus.NEUTRAL, Problem.DKIM_SYNTAX, "x= must be greater"),
    (signed(d="exa mple.org"), DkimStatus.NEUTRAL, Problem.DKIM_SYNTAX, "not a domain"),
    (signed(n="1; n=2"), DkimStatus.NEUTRAL, Problem.DKIM_DUPLICATE_TAG, "a tag twice"),
    (signed(i="joe@example.com"), DkimStatus.PERMERROR, Problem.DKIM_DOMAIN_MISMATCH, "i= of another domain"),
    (
        signed(i="joe@xexample.org"),
        DkimStatus.PERMERROR,
        Problem.DKIM_DOMAIN_MISMATCH,
        "only looks like a subdomain",
    ),
    (signed(i="j=0D=0Aoe@example.org"), DkimStatus.NEUTRAL, Problem.DKIM_SYNTAX, "a CRLF in hiding"),
    (signed(h="to:subject"), DkimStatus.PERMERROR, Problem.DKIM_FROM_NOT_SIGNED, "anyone may be the author"),
    (signed(x=f"{NOW - 1:.0f}"), DkimStatus.PERMERROR, Problem.DKIM_EXPIRED, "expired"),
    (signed(t=f"{NOW + 301:.0f}"), DkimStatus.POLICY, Problem.DKIM_FROM_THE_FUTURE, "a clock far ahead"),
    (signed(a="rsa-sha1"), DkimStatus.POLICY, Problem.DKIM_SHA1, "RFC 8301"),
    (signed(s="absent"), DkimStatus.PERMERROR, Problem.DKIM_KEY_MISSING, "no such name"),
    (signed(a="ed25519-sha256"), DkimStatus.PERMERROR, Problem.DKIM_KEY_ALGORITHM, "the key is an RSA key"),
    (SHORT.sign(MESSAGE), DkimStatus.POLICY, Problem.DKIM_SHORT_KEY, "768 bits"),
    (SHORT.sign(MESSAGE) + b"x", DkimStatus.FAIL, Problem.DKIM_BODY_HASH, "a short key does not hide a fail"),
    (Signer(length=9).sign(MESSAGE), DkimStatus.POLICY, Problem.DKIM_BODY_LENGTH, "the rest is anyone's"),
    (Signer(length=0).sign(MESSAGE), DkimStatus.POLICY, Problem.DKIM_BODY_LENGTH, "l=0 is not `no l=`"),
    (
        Signer(length=BODY_BYTES, tags={"l": str(BODY_BYTES + 1)}).sign(MESSAGE),
        DkimStatus.PERMERROR,
        Problem.DKIM_BODY_TOO_SHORT,
        "l= past the body",
    ),
    (signed(l="9" * 76), DkimStatus.PERMERROR, Problem.DKIM_BODY_TOO_SHORT, "the most digits allowed"),
    (signed(l="9" * 77), DkimStatus.NEUTRAL, Problem.DKIM_SYNTAX, "one too many"),
    (
        b"Subject: Send money\r\n" + Signer().sign(MESSAGE),
        DkimStatus.POLICY,
        Problem.DKIM_UNSIGNED_FIELD,
        "signed is one Subject, shown is the other",
    ),
    (signed(l="-1"), DkimStatus.NEUTRAL, Problem.DKIM_SYNTAX, "not a number"),
    (Signer().sign(MESSAGE) + b"x", DkimStatus.FAIL, Problem.DKIM_BODY_HASH, "text added"),
    (
        Signer().sign(MESSAGE).replace(b"dinner", b"supper"),
        DkimStatus.FAIL,
        Problem.DKIM_SIGNATURE,
        "a signed field altered",
    ),
    (
        Signer(signed="from:cc").sign(MESSAGE).replace(b"To:", b"Cc: x\r\nTo:"),
        DkimStatus.FAIL,
        Problem.DKIM_SIGNATURE,
        "a field added that was signed as absent",
    ),
    (
        Signer(header=SIMPLE).sign(MESSAGE).replace(b"From:", b"From :"),
        DkimStatus.FAIL,
        Problem.DKIM_SIGNATURE,
        "simple forgives nothing in a header",
    ),
    (
        Signer(signed="from").sign(MESSAGE).replace(b"To:", b"From: x@y.example\r\nTo:"),
        DkimStatus.PERMERROR,
        Problem.DKIM_SEVERAL_FROM,
        "one From is signed, the other is shown",
    ),
    (
        Signer(signed="from").sign(MESSAGE).replace(b"To:", b"From : x@y.example\r\nTo:"),
        DkimStatus.PERMERROR,
        Problem.DKIM_SEVERAL_FROM,
        "the obsolete form is a From too",
    ),
    (
        Signer(signed="from").sign(MESSAGE + b"\r\n").replace(b"To:", b"X: y\r\n" * 2100 + b"To:"),
        DkimStatus.PERMERROR,
        Problem.DKIM_HEADER_CUT,
        "what lies past the limit on fields may be another From",
    ),
]


@pytest.mark.parametrize(("raw", "status", "problem", "why"), BAD)
async def test_bad(raw: bytes, status: DkimStatus, problem: Problem, why: str) -> None:
    result = await only(raw)

    assert (result.status, result.problem) == (status, problem), why
    assert not result.counts_for_dmarc


async def test_relaxed_forgives_the_obsolete_form_of_a_name() -> None:
    assert (await only(Signer().sign(MESSAGE).replace(b"From:", b"FROM \t:"))).status is DkimStatus.PASS


async def test_part_of_a_body_signed_is_said_so() -> None:
    result = await only(Signer(length=9).sign(MESSAGE))

    assert not result.covers_whole_body


RSA, ED = rsa_public().encode(), ed25519_public().encode()
KEYS: list[tuple[bytes | list[bytes] | Trouble | None, DkimStatus, Problem | None, str]] = [
    (b"p=" + RSA, DkimStatus.PASS, None, "every tag but p= may be absent"),
    (b"p=" + rsa_public_pkcs1().encode(), DkimStatus.PASS, None, "a bare RSAPublicKey"),
    (
        b"v=DKIM1; h=sha1 : sha256; s=other : email; t=unknown; n=x; p=" + RSA + b" ; ",
        DkimStatus.PASS,
        None,
        "lists",
    ),
    (
        b"s=*; g=nobody; p=" + RSA[:50] + b" \t" + RSA[50:],
        DkimStatus.PASS,
        None,
        "g= is gone since RFC 6376; folded p=",
    ),
    (b"t=y; p=" + RSA, DkimStatus.PASS, None, "testing"),
    ([b"v=spf1 -all", b"p=" + RSA], DkimStatus.PASS, None, "one key beside something else"),
    ([b"p=" + RSA, b"p=" + RSA], DkimStatus.PASS, None, "the same key twice"),
    ([b"p=" + RSA, b"p="], DkimStatus.PERMERROR, Problem.DKIM_KEY_SEVERAL, "a key and its revocation"),
    ([b"v=spf1 -all", b"x"], DkimStatus.PERMERROR, Problem.DKIM_KEY_SYNTAX, "several, no key"),
    (None, DkimStatus.PERMERROR, Problem.DKIM_KEY_MISSING, "the name has no TXT"),
    (b"p=", DkimStatus.PERMERROR, Problem.DKIM_KEY_REVOKED, "revoked"),
    (b"v=DKIM1; k=rsa", DkimStatus.PERMERROR, Problem.DKIM_KEY_SYNTAX, "no p="),
    (b"", DkimStatus.PERMERROR, Problem.DKIM_KEY_SYNTAX, "empty"),
    (b"v=DKIM2; p=" + RSA, DkimStatus.PERMERROR, Problem.DKIM_KEY_SYNTAX, "another version"),
    (b"p=" + RSA + b"; v=DKIM1", DkimStatus.PERMERROR, Problem.DKIM_KEY_SYNTAX, "v= must be first"),
    (b"k=ed25519; p=" + ED, DkimStatus.PERMERROR, Problem.DKIM_KEY_ALGORITHM, "not the kind that signed"),
    (b"k=dsa; p=" + RSA, DkimStatus.PERMERROR, Problem.DKIM_KEY_ALGORITHM, "an unknown kind"),
    (b"h=sha1; p=" + RSA, DkimStatus.PERMERROR, Problem.DKIM_KEY_HASH, "not for SHA-256"),
    (b"s=tlsrpt; p=" + RSA, DkimStatus.PERMERROR, Problem.DKIM_KEY_SERVICE, "not for mail"),
    (b"p=" + RSA + b";x=" + b"y" * 4096, DkimStatus.PERMERROR, Problem.DKIM_KEY_TOO_LARGE, "a huge record"),
    (Trouble.TIMEOUT, DkimStatus.TEMPERROR, Problem.DNS_TIMEOUT, "a failure is never `no key`"),
    (Trouble.SERVFAIL, DkimStatus.TEMPERROR, Problem.DNS_SERVFAIL, "nor is a bogus zone"),
]


@pytest.mark.parametrize(("record", "status", "problem", "why"), KEYS)
async def test_keys(
    record: bytes | list[bytes] | Trouble | None,
    status: DkimStatus,
    problem: Problem | None,
    why: str,
) -> None:
    result = await only(Signer(selector="k").sign(MESSAGE), zone({"k": record}))

    assert (result.status, result.problem) == (status, problem), why


async def test_a_strict_key_signs_for_no_subdomain() -> None:
    keys = zone({"k": b"t=s; p=" + RSA})
    strict = Signer(selector="k", tags={"i": "joe@sub.example.org"})
    same = Signer(selector="k", tags={"i": "joe@EXAMPLE.org"})

    assert (await only(strict.sign(MESSAGE), keys)).problem is Problem.DKIM_KEY_STRICT
    assert (await only(same.sign(MESSAGE), keys)).status is DkimStatus.PASS


async def test_a_failure_of_a_testing_domain_is_not_held_against_it() -> None:
    result = await only(Signer(selector="k").sign(MESSAGE) + b"x", zone({"k": b"t=y; p=" + RSA}))

    assert (result.status, result.problem, result.testing) == (
        DkimStatus.NEUTRAL,
        Problem.DKIM_KEY_TESTING,
        True,
    )


async def test_internationalised_names_are_looked_up_as_a_labels() -> None:
    name = "schlüssel._domainkey.bücher.example"
    keys = zone({"xn--schlssel-95a._domainkey.xn--bcher-kva.example": b"p=" + RSA})
    tags = {"d": "bücher.example", "i": "jörg@bücher.example"}

    result = await only(Signer(selector=name.partition(".")[0], tags=tags).sign(MESSAGE), keys)

    assert (result.status, result.domain) == (DkimStatus.PASS, "xn--bcher-kva.example")
    assert result.auid == "jörg@xn--bcher-kva.example"


async def test_each_signature_has_its_own_result_in_field_order() -> None:
    raw = Signer().sign(ED25519.sign(Signer(tags={"a": "rsa-sha1"}).sign(MESSAGE)))

    results = await check_dkim(Message(raw), zone(), now=NOW)

    assert [(result.position, result.status) for result in results] == [
        (0, DkimStatus.PASS),
        (1, DkimStatus.PASS),
        (2, DkimStatus.POLICY),
    ]


async def test_signatures_past_the_limit_are_not_evaluated_and_few_are_reported() -> None:
    raw = MESSAGE
    for _ in range(30):
        raw = ED25519.sign(raw)

    results = await check_dkim(Message(raw), zone(), now=NOW, max_signatures=3)

    assert [result.status for result in results] == [DkimStatus.PASS] * 3 + [DkimStatus.NEUTRAL] * 8
    assert {result.problem for result in results[3:]} == {Problem.DKIM_TOO_MANY}


async def test_one_key_is_asked_for_once() -> None:
    asked: list[str] = []

    class Counting(ZoneResolver):
        async def query(self, name: str, record_type: RecordType) -> Outcome:
            asked.append(name)
            return await super().query(name, record_type)

    keys = zone()
    counting = Counting(keys._nodes)

    results = await check_dkim(Message(Signer().sign(Signer().sign(MESSAGE))), counting, now=NOW)

    assert [result.status for result in results] == [DkimStatus.PASS] * 2
    assert asked == ["rsa._domainkey.example.org"]


async def test_nothing_is_asked_for_a_signature_that_cannot_pass() -> None:
    class Silent(ZoneResolver):
        async def query(self, name: str, record_type: RecordType) -> Outcome:
            raise AssertionError(name)

    for raw in (signed(a="rsa-sha1"), signed(h="to"), signed(v="2"), signed(x="1")):
        (result,) = await check_dkim(Message(raw), Silent({}), now=NOW)
        assert result.status is not DkimStatus.PASS


async def test_signatures_are_told_apart_in_the_header() -> None:
    raw = b"".join(
        b"DKIM-Signature: v=1; a=rsa-sha256; d=example.org; s=absent; h=from;"
        b" bh=" + b"A" * 43 + b"=; b=AAAAAAAAAAAA" + end + b"\r\n"
        for end in (b"AAAA", b"BBBB")
    )

    first, second = await check_dkim(Message(raw + MESSAGE), zone(), now=NOW)

    assert (first.signature_start, second.signature_start) == ("AAAAAAAAAAAAAAAA", "AAAAAAAAAAAABBBB")


async def test_an_unreadable_signature_still_names_its_domain() -> None:
    result = await only(signed(v="2"))

    assert (result.domain, result.selector) == ("example.org", "rsa")


@pytest.mark.parametrize("how", list(Canonicalization))
@pytest.mark.parametrize("body", [b"", b"\r\n", b"\r\n\r\n\r\n", b"\r\n" + BODY])
async def test_bodies_at_the_edge(how: Canonicalization, body: bytes) -> None:
    raw = Signer(body=how).sign(HEADER + b"\r\n" + body)

    assert (await only(raw)).status is DkimStatus.PASS
    assert (await only(raw + b"\r\n\r\n")).status is DkimStatus.PASS, "empty lines at the end are forgiven"
    assert (await only(raw + b"\r\n.\r\n")).problem is Problem.DKIM_BODY_HASH


async def test_for_fields_that_are_not_signed_a_signer_never_vouched() -> None:
    raw = b"Content-Type: text/html\r\nContent-Type: text/plain\r\n" + Signer().sign(MESSAGE)

    assert (await only(raw)).status is DkimStatus.PASS


async def test_a_length_of_nothing_covers_an_empty_body() -> None:
    raw = Signer(length=0).sign(HEADER + b"\r\n")

    assert (await only(raw)).status is DkimStatus.PASS
    assert (await only(raw + b"x\r\n")).problem is Problem.DKIM_BODY_LENGTH


async def test_a_mapped_file_is_read_like_bytes() -> None:
    raw = Signer().sign(HEADER + b"\r\n" + b"A line \t of text  \r\n" * 50_000)
    with tempfile.TemporaryFile() as file:
        file.write(raw)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            (result,) = await check_dkim(Message(mapped), zone(), now=NOW)

    assert result.status is DkimStatus.PASS


def test_every_dkim_problem_has_a_result_word() -> None:
    named = {problem for problem in Problem if problem.startswith(("dkim.", "dns."))}

    assert set(STATUS) == named
    assert DkimStatus.PASS not in STATUS.values()
