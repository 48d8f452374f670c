"""The ARC signing suite: what it expects of a sealer verifies with us, byte for byte, and our seals say the same of the same messages.

The suite's sealer wrote tags in the order of the alphabet and took the fields to sign from each test; ours has an order and a list
of its own, so its `b=` is another. RSA signatures have one value only: that ours verifies theirs is that we would have made the same.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dkim
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from gateway.auth.arc import check_arc
from gateway.auth.arc.seal import Sealed, Sealer
from gateway.auth.dkim.canonical import Canonicalization, canonical_field
from gateway.auth.dkim.key_table import SigningKey
from gateway.auth.dkim.tags import parse_tags
from gateway.auth.results import ArcStatus, Problem
from gateway.dns.resolver import RecordType
from gateway.dns.zone import ZoneResolver
from gateway.mail.edits import Edits, NewField, apply_edits
from gateway.mail.message import Message

FILE = Path(__file__).parents[3] / "shared" / "conformance" / "arc" / "arc-draft-sign-tests.yml"
NOW = 1_700_000_000.0
FIELDS = {"AS": "ARC-Seal", "AMS": "ARC-Message-Signature", "AAR": "ARC-Authentication-Results"}

ONE_FIELD = {
    "ar_merged1": "two fields of one authserv-id are to become one; we write one ourselves, and take all others out",
    "ar_merged2": "likewise",
}
"""Where our ARC-Authentication-Results is not the suite's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    message: Message
    results: NewField
    expected: dict[str, str]
    key: RSAPrivateKey

    @property
    def sealer(self) -> Sealer:
        return Sealer(
            SigningKey(
                domain="example.org",
                selector="dummy",
                subdomains=False,
                expires_after_s=None,
                private_key=self.key,
            )
        )

    @property
    def record(self) -> bytes:
        """The suite's own has line ends in it, which no record can have."""
        public = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return b"v=DKIM1; k=rsa; p=" + b"".join(public.split(b"\n")[1:-2])

    @property
    def resolver(self) -> ZoneResolver:
        return ZoneResolver.from_records({("dummy._domainkey.example.org", RecordType.TXT): [self.record]})

    async def seal(self) -> Sealed | None:
        arc = await check_arc(self.message, self.resolver, now=NOW)
        return self.sealer.seal(self.message, Edits(), self.results, arc, now=NOW)

    def with_fields(self, fields: tuple[NewField, ...]) -> bytes:
        return b"".join(apply_edits(self.message, Edits(prepend=fields)))

    def foreign_status(self, raw: bytes) -> bytes | None:
        word, _, _ = dkim.arc_verify(raw, dnsfunc=lambda name, timeout=5: self.record)
        return bytes(word) if word else None


def _cases() -> list[Case]:
    if not FILE.exists():
        return []
    cases = []
    for suite in filter(None, yaml.safe_load_all(FILE.read_text())):
        key = load_pem_private_key(suite["privatekey"].encode(), password=None)
        assert isinstance(key, RSAPrivateKey)
        for name, test in suite["tests"].items():
            message = Message(test["message"].replace("\n", "\r\n").encode())
            cases.append(
                Case(
                    name=name,
                    message=message,
                    results=_topmost_results(message, test),
                    expected={FIELDS[field]: _unfolded(test[field] or "") for field in FIELDS},
                    key=key,
                )
            )
    return cases


def _topmost_results(message: Message, test: dict[str, Any]) -> NewField:
    fields = [message.unfolded(at).decode() for at in message.positions(b"authentication-results")]
    ours = next(value for value in fields if value.startswith(f"{test['srv-id']};"))
    return NewField("Authentication-Results", " ".join(ours.split()))


def _unfolded(value: str) -> str:
    """As the suite's sealer signed it: on one line, `b=` without the folding that it got for the file."""
    without = re.sub(r"(?<![a-z])b=[^;]*", lambda found: "".join(found[0].split()), value)
    return " ".join(without.split())


CASES = _cases()
SEALED = [case for case in CASES if case.name != "no_additional_sig"]

pytestmark = pytest.mark.skipif(not CASES, reason="the ARC suite is not beside the project")


def test_the_suite_is_whole() -> None:
    assert len(CASES) == 17
    assert ONE_FIELD.keys() <= {case.name for case in CASES}


@pytest.mark.parametrize("case", SEALED, ids=lambda case: case.name)
async def test_what_the_suite_expects_verifies(case: Case) -> None:
    expected = tuple(NewField(name, value) for name, value in case.expected.items())
    closing = "cv=fail" in case.expected["ARC-Seal"]

    result = await check_arc(Message(case.with_fields(expected)), case.resolver, now=NOW)

    assert result.status is (ArcStatus.FAIL if closing else ArcStatus.PASS), result
    assert result.problem is (Problem.ARC_FAILED_BEFORE if closing else None)


@pytest.mark.parametrize("case", SEALED, ids=lambda case: case.name)
async def test_our_set_says_the_same(case: Case) -> None:
    sealed = await case.seal()
    assert sealed is not None

    seal, signature, results = (field.to_bytes() for field in sealed.fields)
    for ours, name, told in (
        (seal, "ARC-Seal", ("i", "cv", "a", "d", "s")),
        (signature, "ARC-Message-Signature", ("i", "a", "c", "d", "s", "bh")),
    ):
        tags = parse_tags(ours.removesuffix(b"\r\n").partition(b":")[2])
        theirs = parse_tags(case.expected[name].encode())
        assert {tag: tags[tag] for tag in told} == {tag: theirs[tag] for tag in told}, name
    if case.name not in ONE_FIELD:
        expected = f"ARC-Authentication-Results: {case.expected['ARC-Authentication-Results']}\r\n".encode()
        assert canonical_field(results, Canonicalization.RELAXED) == canonical_field(
            expected, Canonicalization.RELAXED
        )


@pytest.mark.parametrize("case", SEALED, ids=lambda case: case.name)
async def test_our_set_verifies_with_us_and_dkimpy(case: Case) -> None:
    sealed = await case.seal()
    assert sealed is not None
    raw = case.with_fields(sealed.fields)

    result = await check_arc(Message(raw), case.resolver, now=NOW)

    closing = "cv=fail" in case.expected["ARC-Seal"]
    assert result.status is (ArcStatus.FAIL if closing else ArcStatus.PASS)
    assert case.foreign_status(raw) == (None if closing else b"pass")


async def test_a_chain_that_was_closed_gets_no_further_set() -> None:
    (case,) = (case for case in CASES if case.name == "no_additional_sig")

    assert not any(case.expected.values())
    assert await case.seal() is None
