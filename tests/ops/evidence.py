"""One message's values, made by hand, for the tests of logs, metrics and explanations."""

from ipaddress import ip_address

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
    SenderDomain,
    SpfIdentity,
    SpfResult,
    SpfStatus,
)
from gateway.mail.address import parse_mailbox
from gateway.mail.envelope import Envelope, Listener, Recipient, Session
from gateway.mail.reply import Reply
from gateway.verdict import Disposition, Verdict

CLIENT = ip_address("192.0.2.1")


def envelope(*, helo: str = "mail.example.com", trusted: bool = False) -> Envelope:
    return Envelope(
        id="4f2a",
        session=Session(id="s1", listener=Listener.INBOUND, client_ip=CLIENT, helo=helo, trusted=trusted),
        mail_from=parse_mailbox("ann@example.com"),
        recipients=(Recipient(mailbox=parse_mailbox("bob@example.net")),),
    )


FORGED = Evidence(
    spf_helo=SpfResult(identity=SpfIdentity.HELO, status=SpfStatus.NONE, domain="mail.example.com"),
    spf=SpfResult(
        identity=SpfIdentity.MAIL_FROM,
        status=SpfStatus.PERMERROR,
        domain="example.com",
        problem=Problem.SPF_TOO_MANY_LOOKUPS,
    ),
    dkim=(
        DkimResult(
            position=0, status=DkimStatus.PASS, domain="list.example", selector="a", algorithm="rsa-sha256"
        ),
        DkimResult(position=1, status=DkimStatus.FAIL, domain="bank.example", problem=Problem.DKIM_BODY_HASH),
        DkimResult(position=2, status=DkimStatus.NEUTRAL, problem=Problem.DKIM_SYNTAX),
    ),
    dmarc=DmarcResult(
        status=DmarcStatus.FAIL,
        author_domain="bank.example",
        record=DmarcRecord(domain="bank.example", policy=DmarcPolicy.REJECT),
        requested=DmarcPolicy.REJECT,
        applied=DmarcPolicy.REJECT,
    ),
    iprev=IprevResult(status=IprevStatus.PERMERROR, client_ip=CLIENT, problem=Problem.IPREV_NO_NAME),
    sender_domain=SenderDomain.MX,
)

REJECTED = Verdict(
    disposition=Disposition.REJECT,
    intended=Disposition.REJECT,
    rule="dmarc-reject",
    reply=Reply.of(550, "5.7.1", "refused (dmarc-reject, 4f2a)"),
    evidence=FORGED,
)
