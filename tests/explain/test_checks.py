import pytest

from gateway.auth.results import (
    ArcResult,
    ArcSet,
    ArcStatus,
    DkimResult,
    DkimStatus,
    DmarcPolicy,
    DmarcRecord,
    DmarcResult,
    DmarcStatus,
    Evidence,
    IprevResult,
    IprevStatus,
    Problem,
    SenderDomain,
    SpfIdentity,
    SpfResult,
    SpfStatus,
)
from gateway.explain import Finding, Tone, explain
from gateway.explain.problems import WORDS
from gateway.mail.authentication_results import parse_results
from gateway.mail.reply import Reply
from gateway.mail.value import replace
from gateway.verdict import Disposition, Verdict
from tests.ops.evidence import CLIENT, FORGED, REJECTED, envelope


def findings(evidence: Evidence, *, trusted: bool = False, client_known: bool = True) -> list[Finding]:
    verdict = Verdict(disposition=Disposition.ACCEPT, rule="pass", evidence=evidence)
    return list(explain(envelope(trusted=trusted), verdict, client_known=client_known).findings)


def spf(status: SpfStatus, problem: Problem | None = None, domain: str | None = "example.com") -> Evidence:
    return Evidence(
        spf=SpfResult(identity=SpfIdentity.MAIL_FROM, status=status, domain=domain, problem=problem)
    )


def test_the_order_is_that_in_which_one_rests_on_the_other() -> None:
    found = explain(envelope(), REJECTED).findings
    assert [finding.check for finding in found] == [
        "iprev",
        "SPF of HELO",
        "SPF of MAIL FROM",
        "Sender domain",
        "DKIM",
        "DKIM",
        "DKIM",
        "DMARC",
    ]


def test_a_forgery_in_plain_words() -> None:
    explanation = explain(envelope(), REJECTED)
    said = {finding.check: finding for finding in explanation.findings}
    assert said["SPF of MAIL FROM"].says == (
        "The SPF record of example.com is broken: the SPF record needs more than ten DNS lookups."
    )
    assert said["SPF of MAIL FROM"].section == "RFC 7208 §4.6.4"
    assert said["DMARC"].tone is Tone.BAD
    assert said["DMARC"].says.endswith("The record at bank.example asks to refuse failing mail.")
    assert explanation.conclusion == (
        'The message is refused with "550 5.7.1 refused (dmarc-reject, 4f2a)", by the rule "dmarc-reject".'
    )


@pytest.mark.parametrize("status", SpfStatus)
def test_every_spf_result_has_words_with_the_domain_in_them(status: SpfStatus) -> None:
    (finding,) = findings(spf(status))
    assert finding.status == status
    assert "example.com" in finding.says


def test_no_domain_to_ask_is_not_a_domain_without_record() -> None:
    (finding,) = findings(spf(SpfStatus.NONE, domain=None))
    assert finding.says == "There is no domain to ask about."


@pytest.mark.parametrize("status", DkimStatus)
def test_every_dkim_result_has_words(status: DkimStatus) -> None:
    (finding,) = findings(
        Evidence(dkim=(DkimResult(position=0, status=status, domain="example.com", selector="s"),))
    )
    assert finding.says.endswith(".")
    assert (finding.tone is Tone.GOOD) is (status is DkimStatus.PASS)


@pytest.mark.parametrize("status", DmarcStatus)
def test_every_dmarc_result_has_words(status: DmarcStatus) -> None:
    finding = findings(
        Evidence(dmarc=DmarcResult(status=status, author_domain="example.com", spf_aligned=True))
    )[-1]
    assert finding.check == "DMARC"
    assert (finding.tone is Tone.GOOD) is (status is DmarcStatus.PASS)


@pytest.mark.parametrize("status", IprevStatus)
def test_every_iprev_result_has_words(status: IprevStatus) -> None:
    (finding,) = findings(
        Evidence(iprev=IprevResult(status=status, client_ip=CLIENT, name="mail.example.com"))
    )
    assert "192.0.2.1" in finding.says


@pytest.mark.parametrize("found", [one for one in SenderDomain if one is not SenderDomain.NOT_CHECKED])
def test_every_sender_domain_has_words(found: SenderDomain) -> None:
    (finding,) = findings(Evidence(sender_domain=found))
    assert "example.com" in finding.says


@pytest.mark.parametrize("problem", Problem)
def test_every_problem_has_words_and_a_section(problem: Problem) -> None:
    words = WORDS[problem]
    assert words.says
    assert not words.says.endswith(".")
    assert words.section.startswith("RFC ")
    finding = findings(spf(SpfStatus.PERMERROR, problem))[0]
    assert (finding.problem, finding.section) == (problem, words.section)


def test_both_proofs_of_a_pass_are_named() -> None:
    passed = DmarcResult(
        status=DmarcStatus.PASS,
        author_domain="example.com",
        spf_aligned=True,
        dkim_aligned="mail.example.com",
    )
    finding = findings(Evidence(dmarc=passed))[-1]
    assert finding.says == (
        "example.com stands behind the message, by SPF and by the DKIM signature of mail.example.com."
    )


def test_a_testing_record_says_what_is_lowered() -> None:
    record = DmarcRecord(domain="example.com", policy=DmarcPolicy.REJECT, testing=True)
    failed = DmarcResult(
        status=DmarcStatus.FAIL,
        author_domain="example.com",
        record=record,
        requested=DmarcPolicy.REJECT,
        applied=DmarcPolicy.QUARANTINE,
    )
    assert findings(Evidence(dmarc=failed))[-1].says.endswith(
        "Its owner is testing (t=y): one level less is applied."
    )


def test_what_could_not_be_judged_is_said() -> None:
    assert findings(Evidence(), client_known=False)[0].says.startswith(
        "Not judged: without the client's address (--ip)"
    )
    assert [finding.status for finding in findings(FORGED, trusted=True)] == ["ours"]


@pytest.mark.parametrize(
    ("verdict", "conclusion"),
    [
        (
            Verdict(disposition=Disposition.ACCEPT, rule="pass"),
            'The message is handed on, by the rule "pass".',
        ),
        (
            Verdict(disposition=Disposition.ACCEPT, intended=Disposition.REJECT, rule="no-from"),
            'The message is handed on, by the rule "no-from". The rule says reject, but these rules only watch.',
        ),
        (
            Verdict(disposition=Disposition.QUARANTINE, rule="q"),
            'The message is handed on marked, or held, by the rule "q".',
        ),
        (
            Verdict(disposition=Disposition.DEFER, rule="d", reply=Reply.of(451, "4.7.1", "later")),
            'The sender is asked to try again later, with "451 4.7.1 later", by the rule "d".',
        ),
    ],
)
def test_conclusions(verdict: Verdict, conclusion: str) -> None:
    assert explain(envelope(), replace(verdict, evidence=FORGED)).conclusion == conclusion


SEALED = (
    ArcSet(
        instance=2, sealer="forward.example", results=parse_results("mx; dmarc=fail header.from=bank.example")
    ),
    ArcSet(instance=1, sealer="list.example", results=None),
)


def test_a_chain_that_holds_is_no_praise_and_tells_who_saw_what() -> None:
    (finding,) = findings(Evidence(arc=ArcResult(status=ArcStatus.PASS, sets=SEALED, oldest_pass=0)))
    assert (finding.check, finding.status, finding.tone) == ("ARC", "pass", Tone.NEUTRAL)
    assert finding.says == (
        "The message is as forward.example let it go; sealed by, in this order: list.example, forward.example."
        " forward.example says that DMARC was fail before it."
    )


def test_a_broken_chain_tells_where_it_broke_and_of_what() -> None:
    broken = ArcResult(
        status=ArcStatus.FAIL,
        sets=SEALED,
        problem=Problem.ARC_MESSAGE_SIGNATURE,
        cause=Problem.DKIM_BODY_HASH,
        failed_instance=2,
    )
    (finding,) = findings(Evidence(arc=broken))
    assert finding.says == (
        "The chain of those who handled the message does not hold: the message is not as its last sealer let it go."
        f" It is about instance 2, forward.example: {WORDS[Problem.DKIM_BODY_HASH].says}."
    )


def test_a_chain_that_could_not_be_checked() -> None:
    result = ArcResult(
        status=ArcStatus.TEMPERROR, sets=SEALED, problem=Problem.DNS_TIMEOUT, failed_instance=1
    )
    (finding,) = findings(Evidence(arc=result))
    assert finding.tone is Tone.DOUBT
    assert finding.says.endswith("It is about instance 1, list.example.")


def test_no_chain_needs_no_words() -> None:
    assert not findings(Evidence(arc=ArcResult(status=ArcStatus.NONE)))
