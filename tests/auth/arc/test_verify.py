"""What the check says of chains, good and bad. The canonical cases are in tests/conformance/test_arc_suite.py."""

import re

import pytest

from gateway.auth.arc import check_arc
from gateway.auth.results import ArcResult, ArcStatus, Problem
from gateway.dns.resolver import Trouble
from gateway.dns.zone import ZoneResolver
from gateway.mail.message import Message
from tests.auth.arc.chains import Custodian, chain, world
from tests.auth.dkim.signing import MESSAGE, NOW, ed25519_public

LIST = Custodian(domain="lists.example")
FORWARDER = Custodian(domain="forward.example")
EVIL = Custodian(domain="evil.example")


async def check(raw: bytes, resolver: ZoneResolver | None = None, *, max_instances: int = 10) -> ArcResult:
    return await check_arc(Message(raw), resolver or world(), now=NOW, max_instances=max_instances)


async def test_no_field_no_chain() -> None:
    assert (await check(MESSAGE)).status is ArcStatus.NONE


async def test_a_chain_says_who_sealed_newest_first_and_what_each_found() -> None:
    result = await check(chain(MESSAGE, LIST, FORWARDER))

    assert result.status is ArcStatus.PASS
    assert [(one.instance, one.sealer) for one in result.sets] == [
        (2, "forward.example"),
        (1, "lists.example"),
    ]
    assert [(said.method, said.result) for said in result.sets[1].results or ()] == [("dmarc", "pass")]
    assert result.oldest_pass == 0


async def test_what_a_custodian_altered_before_sealing_is_his_to_answer_for() -> None:
    altered = LIST.seal(MESSAGE) + b"-- \r\nthe list\r\n"

    result = await check(FORWARDER.seal(altered))

    assert (result.status, result.oldest_pass) == (ArcStatus.PASS, 2)


ALTERED = {
    # what was done with a message that two custodians had sealed: the problem, its cause, the instance
    "body": (b"Joe.", b"Eve.", Problem.ARC_MESSAGE_SIGNATURE, Problem.DKIM_BODY_HASH, 2),
    "subject": (b"dinner", b"supper", Problem.ARC_MESSAGE_SIGNATURE, Problem.DKIM_SIGNATURE, 2),
    "what the first found": (b"dmarc=pass", b"dmarc=fail", Problem.ARC_SEAL, Problem.DKIM_SIGNATURE, 2),
    "who sealed first": (
        b"ARC-Seal: i=1; a=rsa-sha256; d=lists",
        b"ARC-Seal: i=1; a=rsa-sha256; d=forward",
        Problem.ARC_SEAL,
        Problem.DKIM_SIGNATURE,
        2,
    ),
    "a number": (b"ARC-Seal: i=2", b"ARC-Seal: i=3", Problem.ARC_STRUCTURE, None, 2),
    "a number twice": (b"ARC-Seal: i=2", b"ARC-Seal: i=1", Problem.ARC_STRUCTURE, None, 1),
    "a number beyond all": (b"ARC-Seal: i=2", b"ARC-Seal: i=51", Problem.ARC_INSTANCE, None, None),
    "no number": (b"ARC-Seal: i=2;", b"ARC-Seal: ", Problem.ARC_INSTANCE, None, None),
    "a number with a sign": (b"ARC-Seal: i=2", b"ARC-Seal: i=+2", Problem.ARC_INSTANCE, None, None),
    "a number not in front": (
        b"ARC-Authentication-Results: i=2; mx",
        b"ARC-Authentication-Results: mx; i=2; x",
        Problem.ARC_INSTANCE,
        None,
        None,
    ),
    "a field's name": (b"ARC-Seal: i=1", b"X-Seal: i=1", Problem.ARC_STRUCTURE, None, 1),
    "no tag list": (b"ARC-Seal: i=1", b"ARC-Seal: ;;", Problem.ARC_INSTANCE, Problem.DKIM_SYNTAX, None),
}


@pytest.mark.parametrize("name", ALTERED)
async def test_altered_after_the_last_seal(name: str) -> None:
    before, after, problem, cause, instance = ALTERED[name]
    sealed = chain(MESSAGE, LIST, FORWARDER)
    assert before in sealed

    result = await check(re.sub(re.escape(before), after, sealed, count=1))

    assert (result.status, result.problem, result.cause, result.failed_instance) == (
        ArcStatus.FAIL,
        problem,
        cause,
        instance,
    )


BAD_CUSTODIANS = {
    "seals over h=": (Custodian(seal_tags={"h": "from"}), Problem.ARC_SEAL, Problem.DKIM_SYNTAX),
    "begins with cv=pass": (Custodian(cv="pass"), Problem.ARC_CHAIN_VALIDATION, None),
    "begins with cv=fail": (Custodian(cv="fail"), Problem.ARC_FAILED_BEFORE, None),
    "knows another cv=": (Custodian(cv="maybe"), Problem.ARC_SEAL, Problem.DKIM_SYNTAX),
    "begins with i=2": (Custodian(instance=2), Problem.ARC_STRUCTURE, None),
    "signs without From": (
        Custodian(signed="to:subject"),
        Problem.ARC_MESSAGE_SIGNATURE,
        Problem.DKIM_FROM_NOT_SIGNED,
    ),
    "signs its own seal": (
        Custodian(signed="from:arc-seal"),
        Problem.ARC_MESSAGE_SIGNATURE,
        Problem.DKIM_SYNTAX,
    ),
    "signs nothing of the body": (
        Custodian(message_tags={"l": "0", "bh": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="}),
        Problem.ARC_MESSAGE_SIGNATURE,
        Problem.DKIM_BODY_LENGTH,
    ),
    "uses SHA-1 in the seal": (Custodian(seal_tags={"a": "rsa-sha1"}), Problem.ARC_SEAL, Problem.DKIM_SHA1),
    "uses SHA-1 in the signature": (
        Custodian(message_tags={"a": "rsa-sha1"}),
        Problem.ARC_MESSAGE_SIGNATURE,
        Problem.DKIM_SHA1,
    ),
    "names an algorithm that the key is not of": (
        Custodian(seal_tags={"a": "ed25519-sha256"}),
        Problem.ARC_SEAL,
        Problem.DKIM_KEY_ALGORITHM,
    ),
    "has expired": (
        Custodian(message_tags={"x": str(int(NOW) - 1)}),
        Problem.ARC_MESSAGE_SIGNATURE,
        Problem.DKIM_EXPIRED,
    ),
    "has no key": (
        Custodian(domain="nobody.example"),
        Problem.ARC_MESSAGE_SIGNATURE,
        Problem.DKIM_KEY_MISSING,
    ),
    "has no key for the seal": (
        Custodian(seal_tags={"d": "nobody.example"}),
        Problem.ARC_SEAL,
        Problem.DKIM_KEY_MISSING,
    ),
    "seals for a name that is none": (
        Custodian(seal_tags={"d": "lists.example[x"}),
        Problem.ARC_SEAL,
        Problem.DKIM_SYNTAX,
    ),
}


@pytest.mark.parametrize("name", BAD_CUSTODIANS)
async def test_a_custodian_who(name: str) -> None:
    custodian, problem, cause = BAD_CUSTODIANS[name]

    result = await check(custodian.seal(MESSAGE))

    assert (result.status, result.problem, result.cause) == (ArcStatus.FAIL, problem, cause)


async def test_a_seal_over_its_own_set_alone_takes_nobody_elses_place() -> None:
    result = await check(chain(MESSAGE, LIST, Custodian(domain="evil.example", alone=True)))

    assert (result.status, result.problem, result.failed_instance) == (ArcStatus.FAIL, Problem.ARC_SEAL, 2)


async def test_a_chain_once_broken_stays_broken() -> None:
    result = await check(chain(MESSAGE, LIST, Custodian(cv="fail", alone=True)))

    assert (result.status, result.problem, result.failed_instance) == (
        ArcStatus.FAIL,
        Problem.ARC_FAILED_BEFORE,
        2,
    )
    assert not result.sets


async def test_second_fields_that_a_reader_would_be_shown() -> None:
    sealed = LIST.seal(MESSAGE)

    assert (await check(b"From: Eve <eve@evil.example>\r\n" + sealed)).cause is Problem.DKIM_SEVERAL_FROM
    assert (await check(b"Subject: Pay now\r\n" + sealed)).cause is Problem.DKIM_UNSIGNED_FIELD


@pytest.mark.parametrize(
    ("trouble", "problem"),
    [(Trouble.TIMEOUT, Problem.DNS_TIMEOUT), (Trouble.SERVFAIL, Problem.DNS_SERVFAIL)],
)
@pytest.mark.parametrize("sealer", ["lists_example", "forward_example"])
async def test_dns_trouble_is_neither_a_pass_nor_for_good(
    sealer: str, trouble: Trouble, problem: Problem
) -> None:
    result = await check(chain(MESSAGE, LIST, FORWARDER), world(**{sealer: trouble}))

    assert (result.status, result.problem) == (ArcStatus.TEMPERROR, problem)
    assert result.sets[0].sealer == "forward.example"


async def test_dns_trouble_does_not_hide_that_the_message_was_altered() -> None:
    altered = chain(MESSAGE, LIST, FORWARDER).replace(b"Joe.", b"Eve.")

    result = await check(altered, world(lists_example=Trouble.TIMEOUT))

    assert (result.status, result.cause) == (ArcStatus.FAIL, Problem.DKIM_BODY_HASH)


async def test_a_key_of_another_kind() -> None:
    record = b"v=DKIM1; k=ed25519; p=" + ed25519_public().encode()

    result = await check(LIST.seal(MESSAGE), world(lists_example=record))

    assert result.cause is Problem.DKIM_KEY_ALGORITHM


async def test_a_chain_as_long_as_it_may_be_and_one_longer() -> None:
    sealed = chain(MESSAGE, *[LIST] * 4)

    assert (await check(sealed, max_instances=4)).status is ArcStatus.PASS
    result = await check(sealed, max_instances=3)
    assert (result.status, result.problem) == (ArcStatus.FAIL, Problem.ARC_TOO_MANY)


async def test_results_that_cannot_be_read_claim_nothing_and_break_nothing() -> None:
    result = await check(Custodian(results="mx.example; dmarc=pass (").seal(MESSAGE))

    assert result.status is ArcStatus.PASS
    assert result.sets[0].results is None
