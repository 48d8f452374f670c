"""Mail::DKIM's 57 messages: our verdict against the one that it asserts.

Most are from 2005 to 2009: rsa-sha1, 512-bit keys, drafts without `v=1`. RFC 8301 and RFC 6376 have since made most of its passes
something else, so each difference is listed with its reason, and a listed one that goes away fails as well. To have its verdict on
canonicalisation count all the same, the drafts' rsa-sha256 signatures are verified a second time with the missing version overlooked.
"""

import re
from pathlib import Path

import pytest

from gateway.auth.dkim import check_dkim
from gateway.auth.dkim.content import SignedContent, verify_signature
from gateway.auth.dkim.key import select_key
from gateway.auth.dkim.signature import message_signature
from gateway.auth.dkim.tags import DkimError, parse_tags
from gateway.auth.results import DkimResult, DkimStatus, Problem
from gateway.dns.resolver import Answer, RecordType, Trouble
from gateway.dns.zone import ZoneResolver
from gateway.mail.message import Message

FOLDER = Path(__file__).parents[3] / "shared" / "conformance" / "dkim"

NOW = 1_700_000_000.0
"""After every `t=` in the suite, and after the one `x=` (2007), which is there to have expired."""

SHA1 = "rsa-sha1: RFC 8301 §3.1 forbids to verify it"
DRAFT = "no v=, or v=0.5: from a draft before RFC 4871; RFC 6376 §3.5 requires v=1"

DIFFERENT: dict[str, tuple[str, str]] = {
    "bad_1.txt": ("neutral", DRAFT),
    "bad_1878954.txt": ("policy", SHA1),
    "bad_ietf01_1.txt": ("neutral", DRAFT),
    "bad_ietf01_2.txt": ("neutral", DRAFT),
    "bad_ietf01_3.txt": ("neutral", DRAFT),
    "badkey_8.txt": ("policy", SHA1),
    "badkey_9.txt": ("policy", SHA1),
    "badkey_10.txt": ("policy", SHA1),
    "badkey_12.txt": ("policy", SHA1),
    "badkey_13.txt": ("policy", SHA1),
    "badkey_14.txt": ("policy", SHA1),
    "badkey_15.txt": ("policy", SHA1),
    "good_1878523.txt": ("policy", SHA1),
    "good_83176.txt": ("policy", SHA1),
    "good_ietf01_1.txt": ("neutral", DRAFT),
    "good_ietf01_2.txt": ("neutral", DRAFT),
    "good_qp_1.txt": ("policy", SHA1),
    "good_qp_2.txt": ("policy", SHA1),
    "good_qp_3.txt": ("policy", SHA1),
    "good_rfc4871_3.txt": ("policy", SHA1),
    "good_rfc4871_4.txt": ("policy", SHA1),
    "goodkey_1.txt": ("policy", SHA1),
    "goodkey_2.txt": ("policy", SHA1),
    "goodkey_3.txt": ("policy", SHA1),
    "goodkey_4.txt": ("policy", SHA1),
    "mine_ietf01_1.txt": ("neutral", DRAFT),
    "mine_ietf01_2.txt": ("neutral", DRAFT),
    "mine_ietf01_3.txt": ("neutral", DRAFT),
    "mine_ietf01_4.txt": ("neutral", DRAFT),
    "mine_ietf05_1.txt": ("neutral", DRAFT),
    "multiple_1.txt": ("neutral", DRAFT),
    "multiple_2.txt": ("policy", SHA1),
    "no_body_1.txt": ("neutral", DRAFT),
    "no_body_2.txt": ("neutral", DRAFT),
    "no_body_3.txt": ("neutral", DRAFT),
}

# Mail::DKIM's word for a signature or a key that cannot be used is `invalid`; RFC 8601 has two for it.
SAME = {"pass": {"pass"}, "fail": {"fail"}, "invalid": {"neutral", "permerror"}}

BEST_FIRST = (
    DkimStatus.PASS,
    DkimStatus.FAIL,
    DkimStatus.POLICY,
    DkimStatus.TEMPERROR,
    DkimStatus.PERMERROR,
    DkimStatus.NEUTRAL,
)

DRAFT_VERDICTS: dict[str, Problem | None] = {
    "bad_1.txt": Problem.DKIM_SIGNATURE,
    "bad_ietf01_1.txt": Problem.DKIM_BODY_HASH,
    "bad_ietf01_2.txt": Problem.DKIM_SIGNATURE,
    "bad_ietf01_3.txt": Problem.DKIM_SIGNATURE,
    "good_ietf01_1.txt": Problem.DKIM_SHORT_KEY,  # it verifies, with 768 bits
    "mine_ietf01_3.txt": None,
    "mine_ietf01_4.txt": None,
}


def _expected() -> dict[str, str]:
    lines = (FOLDER / "expected.tsv").read_text().splitlines()[1:] if FOLDER.is_dir() else []
    return {name: verdict for name, _, verdict in (line.partition("\t") for line in lines)}


EXPECTED = _expected()

pytestmark = pytest.mark.skipif(not EXPECTED, reason="Mail::DKIM's messages are not beside the project")


@pytest.fixture(scope="module")
def resolver() -> ZoneResolver:
    records: dict[tuple[str, RecordType], list[bytes]] = {}
    trouble: dict[tuple[str, RecordType], Trouble] = {}
    for line in (FOLDER / "FAKE_DNS.dat").read_text().splitlines():
        found = re.fullmatch(r"([^#\s]\S*)\s+(.*)", line)
        if not found:
            continue
        question = (found[1], RecordType.TXT)
        match found[2]:
            case "NXDOMAIN":
                pass
            case "~~Query timed out~~":
                trouble[question] = Trouble.TIMEOUT
            case "~~SERVFAIL~~":
                trouble[question] = Trouble.SERVFAIL
            case text:
                records[question] = [b"" if text == '""' else text.encode()]
    return ZoneResolver.from_records(records, trouble=trouble)


def read(name: str) -> Message:
    return Message((FOLDER / name).read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))


def overall(results: tuple[DkimResult, ...]) -> DkimStatus:
    found = {result.status for result in results}
    return next((status for status in BEST_FIRST if status in found), DkimStatus.NONE)


@pytest.mark.parametrize(("name", "verdict"), EXPECTED.items())
async def test_verdict(name: str, verdict: str, resolver: ZoneResolver) -> None:
    ours = overall(await check_dkim(read(name), resolver, now=NOW))

    if name in DIFFERENT:
        word, reason = DIFFERENT[name]
        assert ours == word, reason
        assert ours not in SAME[verdict], "no longer different: take it off the list"
    else:
        assert ours in SAME[verdict]


def test_only_messages_of_the_suite_are_listed() -> None:
    assert DIFFERENT.keys() | DRAFT_VERDICTS.keys() <= EXPECTED.keys()


@pytest.mark.parametrize("name", DRAFT_VERDICTS)
async def test_the_drafts_are_canonicalised_as_mail_dkim_does(name: str, resolver: ZoneResolver) -> None:
    message = read(name)
    (position,) = message.positions(b"dkim-signature")
    problem: Problem | None
    try:
        signature = message_signature(parse_tags(message.values[position]), auid=None)
        answer = await resolver.query(signature.terms.key_name, RecordType.TXT)
        assert isinstance(answer, Answer)
        key = select_key([record for record in answer.records if isinstance(record, bytes)])
        problem = verify_signature(SignedContent(message, [signature]), position, signature, key)
    except DkimError as error:
        problem = error.problem

    assert problem is DRAFT_VERDICTS[name]
