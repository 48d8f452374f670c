"""The stamp is made of lines that are remembered from message to message: no message may get a word of another's."""

from ipaddress import ip_address

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway import stamp as module
from gateway.auth.results import (
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
    SpfIdentity,
    SpfResult,
    SpfStatus,
)
from gateway.mail.address import parse_mailbox
from gateway.mail.authentication_results import parse_results
from gateway.mail.envelope import Envelope, Listener, Session
from gateway.mail.headers import FOLD_AT
from gateway.stamp import stamp

ENVELOPE = Envelope(
    id="stamp.1",
    session=Session(id="stamp", listener=Listener.INBOUND, client_ip=ip_address("192.0.2.1")),
    mail_from=parse_mailbox("ann@x.example"),
)

# Few values of each kind, so that two messages often differ in one of them only.
DOMAINS = st.sampled_from(["x.example", "y.example", "a-much-longer-name-that-folds.example", "dmarc=pass"])
PROBLEMS = st.none() | st.sampled_from([Problem.DKIM_BODY_HASH, Problem.DNS_TIMEOUT])
SPF = st.builds(
    SpfResult,
    identity=st.sampled_from(SpfIdentity),
    status=st.sampled_from(SpfStatus),
    domain=st.none() | DOMAINS,
    sender=st.none() | st.sampled_from(["ann@x.example", "bob@x.example", "dmarc=pass@x.example"]),
    problem=PROBLEMS,
)
DKIM = st.builds(
    DkimResult,
    position=st.integers(0, 2),
    status=st.sampled_from(DkimStatus),
    domain=st.none() | DOMAINS,
    selector=st.none() | DOMAINS,
    auid=st.none() | st.sampled_from(["@x.example", "ann@x.example", "spf=pass@x.example"]),
    algorithm=st.none() | st.sampled_from(["rsa-sha256", "ed25519-sha256"]),
    signature_start=st.none() | st.sampled_from(["AAAAAAAA", "AAAAAAAB", "AAAA/+==", "A" * 64]),
    problem=PROBLEMS,
)
RECORDS = st.builds(DmarcRecord, domain=DOMAINS, policy=st.sampled_from(DmarcPolicy))
DMARC = st.builds(
    DmarcResult,
    status=st.sampled_from(DmarcStatus),
    author_domain=st.none() | DOMAINS,
    record=st.none() | RECORDS,
    applied=st.sampled_from(DmarcPolicy),
    problem=PROBLEMS,
)
IPREV = st.builds(
    IprevResult,
    status=st.sampled_from(IprevStatus),
    client_ip=st.sampled_from([ip_address("192.0.2.1"), ip_address("2001:db8::1")]),
    name=st.none() | DOMAINS,
    problem=PROBLEMS,
)
EVIDENCE = st.builds(
    Evidence,
    spf_helo=st.none() | SPF,
    spf=st.none() | SPF,
    dkim=st.lists(DKIM, max_size=3).map(tuple),
    dmarc=st.none() | DMARC,
    iprev=st.none() | IPREV,
)


def stamp_of(evidence: Evidence) -> str:
    return stamp("mx.example.net", ENVELOPE, evidence).value


def forget() -> None:
    for remembered in (
        module._spf_line,
        module._dkim_beginning,
        module._dmarc_line,
        module._iprev_line,
    ):
        remembered.cache_clear()


@settings(deadline=None)
@given(st.lists(EVIDENCE, min_size=2, max_size=8))
def test_what_was_stamped_before_makes_no_difference(stamped: list[Evidence]) -> None:
    remembering = [stamp_of(evidence) for evidence in stamped]
    alone = []
    for evidence in stamped:
        forget()
        alone.append(stamp_of(evidence))
    assert remembering == alone


@settings(deadline=None)
@given(EVIDENCE)
@example(Evidence(dkim=(DkimResult(position=0, status=DkimStatus.NEUTRAL),)))
def test_a_stamp_says_what_was_found_in_lines_of_the_right_length(evidence: Evidence) -> None:
    value = stamp_of(evidence)
    said = [(result.method, result.result) for result in parse_results(value.replace("\r\n", ""))]
    expected: list[tuple[str, str]] = [("iprev", result.status) for result in (evidence.iprev,) if result]
    expected += [("spf", result.status) for result in (evidence.spf_helo, evidence.spf) if result]
    expected += [("dkim", result.status) for result in evidence.dkim]
    if evidence.dmarc:
        expected += [("dkim", "none")] if not evidence.dkim else []
        expected.append(("dmarc", evidence.dmarc.status))
    assert said == expected
    for line in f"Authentication-Results: {value}".split("\r\n"):
        assert len(line) <= FOLD_AT or len(line.split()) == 1
