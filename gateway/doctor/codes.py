"""Every finding that the doctor knows: its code, how much it matters, why, and which standard says so.

A code is a promise: it is what scripts look for, and the heading in docs/doctor.md that says what to do. Keep both in step: a
test does.
"""

from enum import StrEnum
from typing import Final, NamedTuple


class Severity(StrEnum):
    """How much a finding matters; from good to bad."""

    OK = "ok"
    NOTE = "note"  # worth knowing; nothing need be done
    WARNING = "warning"  # mail arrives, but is less safe or less believed than it could be
    UNKNOWN = "unknown"  # it cannot be known now: ask again later
    ERROR = "error"  # mail is lost or refused, or anybody can write in the domain's name


class Code(StrEnum):
    """What was found."""

    DNS_UNREACHABLE = "dns.unreachable"
    DNS_UNKNOWN = "dns.unknown"
    DOMAIN_MISSING = "domain.missing"
    DNSSEC_SIGNED = "dnssec.signed"
    DNSSEC_UNSIGNED = "dnssec.unsigned"
    DNSSEC_NOT_CHECKED = "dnssec.not-checked"

    MX_OK = "mx.ok"
    MX_NULL = "mx.null"
    MX_NULL_BESIDE = "mx.null-beside-others"
    MX_IMPLICIT = "mx.implicit"
    MX_NOWHERE = "mx.nowhere"
    MX_NOT_A_HOST = "mx.not-a-host"
    MX_ALIAS = "mx.alias"
    MX_NO_ADDRESS = "mx.no-address"
    MX_PRIVATE_ADDRESS = "mx.private-address"
    MX_MANY = "mx.many"
    PTR_OK = "ptr.ok"
    PTR_MISSING = "ptr.missing"
    PTR_MISMATCH = "ptr.mismatch"

    SPF_OK = "spf.ok"
    SPF_MISSING = "spf.missing"
    SPF_SEVERAL = "spf.several"
    SPF_SYNTAX = "spf.syntax"
    SPF_INCLUDE = "spf.include-without-record"
    SPF_TOO_LARGE = "spf.too-large"
    SPF_TOO_MANY_LOOKUPS = "spf.too-many-lookups"
    SPF_NEAR_LIMIT = "spf.near-limit"
    SPF_TOO_MANY_VOID = "spf.too-many-void-lookups"
    SPF_VOID = "spf.void-lookup"
    SPF_TOO_MANY_MX = "spf.too-many-mx"
    SPF_ALLOWS_ALL = "spf.allows-all"
    SPF_NO_END = "spf.no-end"
    SPF_HUGE_RANGE = "spf.huge-range"
    SPF_PTR = "spf.ptr"

    DKIM_OK = "dkim.ok"
    DKIM_NONE_KNOWN = "dkim.none-known"
    DKIM_MISSING = "dkim.missing"
    DKIM_REVOKED = "dkim.revoked"
    DKIM_SHORT_KEY = "dkim.short-key"
    DKIM_WEAK_KEY = "dkim.weak-key"
    DKIM_TESTING = "dkim.testing"
    DKIM_UNUSABLE = "dkim.unusable"
    DKIM_WILDCARD = "dkim.wildcard"

    DMARC_OK = "dmarc.ok"
    DMARC_MISSING = "dmarc.missing"
    DMARC_SEVERAL = "dmarc.several"
    DMARC_UNUSABLE = "dmarc.unusable"
    DMARC_INHERITED = "dmarc.inherited"
    DMARC_POLICY_NONE = "dmarc.policy-none"
    DMARC_SUBDOMAINS = "dmarc.subdomains-weaker"
    DMARC_TESTING = "dmarc.testing"
    DMARC_IGNORED_TAGS = "dmarc.ignored-tags"
    DMARC_NO_REPORTS = "dmarc.no-reports"
    DMARC_REPORT_URI = "dmarc.report-uri"
    DMARC_REPORTS_UNAUTHORISED = "dmarc.reports-unauthorised"

    STS_OK = "mta-sts.ok"
    STS_MISSING = "mta-sts.missing"
    STS_SEVERAL = "mta-sts.several"
    STS_RECORD = "mta-sts.record-invalid"
    STS_FETCH = "mta-sts.fetch"
    STS_POLICY = "mta-sts.policy-invalid"
    STS_MX_NOT_LISTED = "mta-sts.mx-not-listed"
    STS_UNUSED_PATTERN = "mta-sts.unused-pattern"
    STS_TESTING = "mta-sts.testing"
    STS_NONE = "mta-sts.none"
    STS_SHORT = "mta-sts.short-max-age"

    TLSRPT_OK = "tlsrpt.ok"
    TLSRPT_MISSING = "tlsrpt.missing"
    TLSRPT_SEVERAL = "tlsrpt.several"
    TLSRPT_INVALID = "tlsrpt.invalid"

    DANE_OK = "dane.ok"
    DANE_MISSING = "dane.missing"
    DANE_PARTIAL = "dane.partial"
    DANE_UNUSABLE = "dane.unusable"
    DANE_NOT_SECURE = "dane.not-secure"

    TRANSPORT_PROTECTED = "transport.protected"
    TRANSPORT_UNPROTECTED = "transport.unprotected"
    TRANSPORT_BLOCKED = "transport.blocked"

    CONNECT_OK = "connect.ok"
    CONNECT_FAILED = "connect.failed"
    CONNECT_UNKNOWN = "connect.unknown"
    CONNECT_NO_TLS = "connect.no-tls"
    CONNECT_OLD_TLS = "connect.old-tls"
    CONNECT_CERTIFICATE = "connect.certificate"
    CONNECT_EXPIRES_SOON = "connect.expires-soon"
    CONNECT_TLSA = "connect.tlsa-mismatch"
    CONNECT_REFUSED = "connect.not-deliverable"

    OURS_OK = "ours.ok"
    OURS_MISSING = "ours.missing"
    OURS_DIFFERS = "ours.differs"


class Words(NamedTuple):
    """What is said of a finding beside what was found."""

    severity: Severity
    why: str
    standard: str


_OK, _NOTE = Severity.OK, Severity.NOTE
_WARNING, _UNKNOWN, _ERROR = Severity.WARNING, Severity.UNKNOWN, Severity.ERROR

WORDS: Final = {
    Code.DNS_UNREACHABLE: Words(
        _UNKNOWN, "No resolver answered, so that nothing can be said of the domain.", "RFC 1035 §7.2"
    ),
    Code.DNS_UNKNOWN: Words(
        _UNKNOWN, "A failed lookup is no absence: it may be there, and it may not.", "RFC 2308 §7"
    ),
    Code.DOMAIN_MISSING: Words(
        _ERROR, "No mail can be sent to it, and none from it can be answered.", "RFC 5321 §5.1"
    ),
    Code.DNSSEC_SIGNED: Words(
        _OK, "Answers about the domain cannot be forged on the way.", "RFC 4035 §3.2.3"
    ),
    Code.DNSSEC_UNSIGNED: Words(
        _NOTE,
        "Whoever can forge DNS answers can name other mail servers; DANE needs a signed zone.",
        "RFC 7672 §2.2.1",
    ),
    Code.DNSSEC_NOT_CHECKED: Words(
        _UNKNOWN,
        "The resolver here does not validate, so that DNSSEC and DANE cannot be judged.",
        "RFC 7672 §2.1.3",
    ),
    # Mail servers
    Code.MX_OK: Words(_OK, "Mail is delivered here.", "RFC 5321 §5.1"),
    Code.MX_NULL: Words(
        _NOTE, "The domain says that it takes no mail: senders give up at once.", "RFC 7505 §3"
    ),
    Code.MX_NULL_BESIDE: Words(
        _ERROR,
        "A null MX must stand alone. Beside others some senders give up and some do not.",
        "RFC 7505 §3",
    ),
    Code.MX_IMPLICIT: Words(
        _WARNING,
        "Without MX, mail goes to the domain's own address, which is often a web server; some senders refuse such domains.",
        "RFC 5321 §5.1",
    ),
    Code.MX_NOWHERE: Words(_ERROR, "There is neither MX nor address: all mail bounces.", "RFC 5321 §5.1"),
    Code.MX_NOT_A_HOST: Words(
        _ERROR,
        "An MX must name a host, never an address or other text: senders skip it or bounce.",
        "RFC 5321 §5.1",
    ),
    Code.MX_ALIAS: Words(
        _WARNING, "An MX must not name an alias (CNAME): some senders do not follow it.", "RFC 2181 §10.3"
    ),
    Code.MX_NO_ADDRESS: Words(_ERROR, "Nobody can connect to a host without an address.", "RFC 5321 §5.1"),
    Code.MX_PRIVATE_ADDRESS: Words(
        _ERROR,
        "The address is not reached from the Internet, or leads senders to themselves.",
        "RFC 6890 §2.2.2",
    ),
    Code.MX_MANY: Words(
        _NOTE, "More servers than are looked at here; senders, too, try only some.", "RFC 5321 §5.1"
    ),
    Code.PTR_OK: Words(_OK, "The address has a name that leads back to it.", "RFC 1912 §2.1"),
    Code.PTR_MISSING: Words(
        _NOTE,
        "If this server sends mail, too, many receivers will not take it: its address has no name.",
        "RFC 1912 §2.1",
    ),
    Code.PTR_MISMATCH: Words(
        _NOTE,
        "If this server sends mail, too, many receivers will not take it: its name does not lead back to its address.",
        "RFC 1912 §2.1",
    ),
    # SPF
    Code.SPF_OK: Words(_OK, "Receivers can tell which servers may send for the domain.", "RFC 7208 §2.6"),
    Code.SPF_MISSING: Words(
        _WARNING,
        "Any server may put the domain into an envelope, and receivers cannot tell.",
        "RFC 7208 §2.6.1",
    ),
    Code.SPF_SEVERAL: Words(
        _ERROR, "With several records none counts: every check is a permerror.", "RFC 7208 §4.5"
    ),
    Code.SPF_SYNTAX: Words(
        _ERROR, "One error spoils the whole record: every check is a permerror.", "RFC 7208 §4.6"
    ),
    Code.SPF_INCLUDE: Words(
        _ERROR,
        "The record leads to a domain that has none: every check that gets there is a permerror.",
        "RFC 7208 §5.2",
    ),
    Code.SPF_TOO_LARGE: Words(
        _ERROR, "Receivers limit what they read; 512 bytes fit into any answer.", "RFC 7208 §3.4"
    ),
    Code.SPF_TOO_MANY_LOOKUPS: Words(
        _ERROR,
        "More than 10 lookups are a permerror for every sender that is not matched before.",
        "RFC 7208 §4.6.4",
    ),
    Code.SPF_NEAR_LIMIT: Words(
        _NOTE, "10 lookups are the most; what you include may grow without asking you.", "RFC 7208 §4.6.4"
    ),
    Code.SPF_TOO_MANY_VOID: Words(
        _ERROR, "More than 2 lookups that find nothing are a permerror for many receivers.", "RFC 7208 §4.6.4"
    ),
    Code.SPF_VOID: Words(
        _NOTE,
        "A term leads nowhere and costs a lookup; two are allowed, a third would spoil the record.",
        "RFC 7208 §4.6.4",
    ),
    Code.SPF_TOO_MANY_MX: Words(
        _ERROR, "`mx` may name at most 10 servers: more are a permerror.", "RFC 7208 §4.6.4"
    ),
    Code.SPF_ALLOWS_ALL: Words(_ERROR, "Every server in the world passes, a spammer's too.", "RFC 7208 §5.1"),
    Code.SPF_NO_END: Words(
        _WARNING,
        "The record says nothing against any server: to end in ~all or -all is what it is for.",
        "RFC 7208 §4.7",
    ),
    Code.SPF_HUGE_RANGE: Words(
        _WARNING, "So large a network holds many who are not yours; each of them passes.", "RFC 7208 §11.4"
    ),
    Code.SPF_PTR: Words(
        _WARNING, "`ptr` is slow, unreliable, and not to be used; some receivers skip it.", "RFC 7208 §5.5"
    ),
    # DKIM
    Code.DKIM_OK: Words(_OK, "Signatures of this key can be checked.", "RFC 6376 §3.6.1"),
    Code.DKIM_NONE_KNOWN: Words(
        _NOTE,
        "The names of keys cannot be listed: give those of your signatures (s=) with --selector.",
        "RFC 6376 §3.1",
    ),
    Code.DKIM_MISSING: Words(_ERROR, "Signatures that name this key fail.", "RFC 6376 §6.1.2"),
    Code.DKIM_REVOKED: Words(
        _NOTE, "An empty p= takes the key back: its signatures fail, as they should.", "RFC 6376 §3.6.1"
    ),
    Code.DKIM_SHORT_KEY: Words(
        _ERROR, "RSA keys below 1024 bits can be broken: receivers must not count them.", "RFC 8301 §3.2"
    ),
    Code.DKIM_WEAK_KEY: Words(_WARNING, "RSA keys should have at least 2048 bits.", "RFC 8301 §3.2"),
    Code.DKIM_TESTING: Words(
        _WARNING,
        "t=y says that the key is only being tested: some receivers do not count it.",
        "RFC 6376 §3.6.1",
    ),
    Code.DKIM_UNUSABLE: Words(
        _ERROR, "A key that cannot be read makes every signature that names it fail.", "RFC 6376 §3.6.1"
    ),
    Code.DKIM_WILDCARD: Words(
        _NOTE,
        "Every selector that anybody can think of has this record; the usual ones were not tried.",
        "RFC 6376 §6.1.2",
    ),
    # DMARC
    Code.DMARC_OK: Words(
        _OK, "Receivers are asked not to take mail in the domain's name that fails.", "RFC 9989 §4.7"
    ),
    Code.DMARC_MISSING: Words(
        _WARNING,
        "Anybody can write the domain into From; nobody is asked to refuse that, and you do not hear of it.",
        "RFC 9989 §4.10",
    ),
    Code.DMARC_SEVERAL: Words(_ERROR, "With several records all of them are discarded.", "RFC 9989 §4.10"),
    Code.DMARC_UNUSABLE: Words(
        _ERROR, "A record without a policy that can be read protects nothing.", "RFC 9989 §4.10.1"
    ),
    Code.DMARC_INHERITED: Words(
        _NOTE, "The domain has no record of its own; that of its organization holds.", "RFC 9989 §4.10.1"
    ),
    Code.DMARC_POLICY_NONE: Words(
        _WARNING,
        "p=none asks only for reports: forged mail is delivered. It is where one begins, not where one stays.",
        "RFC 9989 §4.7",
    ),
    Code.DMARC_SUBDOMAINS: Words(
        _WARNING, "Forgers take a subdomain where the domain itself is protected.", "RFC 9989 §4.7"
    ),
    Code.DMARC_TESTING: Words(
        _WARNING, "t=y: receivers apply the policy one step weaker than it says.", "RFC 9989 §4.7"
    ),
    Code.DMARC_IGNORED_TAGS: Words(
        _NOTE,
        "These tags do nothing, or nothing any more: pct, rf and ri were taken out of the standard.",
        "RFC 9989 §4.7",
    ),
    Code.DMARC_NO_REPORTS: Words(
        _NOTE, "Nobody tells you who sends in your name, and what of your own mail fails.", "RFC 9989 §4.7"
    ),
    Code.DMARC_REPORT_URI: Words(
        _WARNING, "No report goes to an address that cannot be read.", "RFC 9989 §4.8"
    ),
    Code.DMARC_REPORTS_UNAUTHORISED: Words(
        _WARNING,
        "Reports go to another domain only if that domain says in its DNS that it wants them.",
        "RFC 9990 §4",
    ),
    # MTA-STS
    Code.STS_OK: Words(
        _OK, "Senders deliver only over TLS, to servers that prove their names.", "RFC 8461 §5"
    ),
    Code.STS_MISSING: Words(_NOTE, "No sender is asked by MTA-STS to insist on TLS.", "RFC 8461 §3"),
    Code.STS_SEVERAL: Words(_ERROR, "With several records the domain has no policy.", "RFC 8461 §3.1"),
    Code.STS_RECORD: Words(
        _ERROR, "With a record that cannot be read the domain has no policy.", "RFC 8461 §3.1"
    ),
    Code.STS_FETCH: Words(
        _ERROR,
        "Senders that do not have the policy yet cannot get it, and deliver without it.",
        "RFC 8461 §3.3",
    ),
    Code.STS_POLICY: Words(_ERROR, "A policy with one error counts as none.", "RFC 8461 §3.2"),
    Code.STS_MX_NOT_LISTED: Words(
        _ERROR,
        "Senders that honour the policy do not deliver to a server that it does not list.",
        "RFC 8461 §4.1",
    ),
    Code.STS_UNUSED_PATTERN: Words(
        _NOTE,
        "The policy allows a server that is no MX: whoever gets that name could take your mail.",
        "RFC 8461 §4.1",
    ),
    Code.STS_TESTING: Words(
        _WARNING,
        "In mode testing failures are only reported; mail goes unprotected all the same.",
        "RFC 8461 §5",
    ),
    Code.STS_NONE: Words(_NOTE, "Mode none takes an old policy back.", "RFC 8461 §5"),
    Code.STS_SHORT: Words(
        _WARNING,
        "A sender forgets the policy so soon that an attacker need only wait; weeks are usual.",
        "RFC 8461 §3.2",
    ),
    # TLS reports
    Code.TLSRPT_OK: Words(_OK, "Senders tell you when TLS to your servers fails.", "RFC 8460 §3"),
    Code.TLSRPT_MISSING: Words(
        _NOTE, "You do not hear of it when others cannot deliver to you over TLS.", "RFC 8460 §3"
    ),
    Code.TLSRPT_SEVERAL: Words(_WARNING, "With several records nobody sends a report.", "RFC 8460 §3"),
    Code.TLSRPT_INVALID: Words(_WARNING, "No report goes to an address that cannot be read.", "RFC 8460 §3"),
    # DANE
    Code.DANE_OK: Words(
        _OK,
        "Its signed DNS says which key the server has: TLS cannot be stripped or forged.",
        "RFC 7672 §2.2",
    ),
    Code.DANE_MISSING: Words(_NOTE, "No sender is asked by DANE to insist on TLS.", "RFC 7672 §1.3"),
    Code.DANE_PARTIAL: Words(
        _WARNING,
        "An attacker leads mail to the server without TLSA records by keeping senders from the others.",
        "RFC 7672 §2.2.1",
    ),
    Code.DANE_UNUSABLE: Words(
        _WARNING,
        "No record is of a kind that is for mail (usage 2 or 3): TLS is demanded, but nobody is proven.",
        "RFC 7672 §3.1.3",
    ),
    Code.DANE_NOT_SECURE: Words(
        _WARNING,
        "TLSA records count only where DNSSEC vouches for them and for the way to them: these do nothing.",
        "RFC 7672 §2.2.1",
    ),
    # Transport
    Code.TRANSPORT_PROTECTED: Words(
        _OK,
        "Who listens or meddles on the way neither reads nor diverts mail to the domain.",
        "RFC 7672 §1.3.1",
    ),
    Code.TRANSPORT_UNPROTECTED: Words(
        _WARNING,
        "Whoever sits between sender and server can strip TLS off and read the mail: enforce MTA-STS, or publish TLSA records in a signed zone.",
        "RFC 7672 §1.3.1",
    ),
    Code.TRANSPORT_BLOCKED: Words(
        _ERROR,
        "Senders that honour what the domain publishes find no server that they may deliver to.",
        "RFC 8461 §5",
    ),
    # Live
    Code.CONNECT_OK: Words(_OK, "Mail would go over this session as the domain asks.", "RFC 3207 §4"),
    Code.CONNECT_FAILED: Words(
        _WARNING,
        "From here no mail could be handed over; where port 25 is closed for this host, try from another.",
        "RFC 5321 §3.1",
    ),
    Code.CONNECT_UNKNOWN: Words(
        _UNKNOWN, "The servers took longer than is waited for here.", "RFC 5321 §4.5.3.2"
    ),
    Code.CONNECT_NO_TLS: Words(
        _ERROR, "Without TLS everybody on the way reads the mail, and some senders refuse.", "RFC 3207 §4"
    ),
    Code.CONNECT_OLD_TLS: Words(_WARNING, "TLS 1.0 and 1.1 must not be used any more.", "RFC 8996 §4"),
    Code.CONNECT_CERTIFICATE: Words(
        _WARNING,
        "Senders that check certificates (MTA-STS) would not deliver here; others do not mind.",
        "RFC 8461 §4.2",
    ),
    Code.CONNECT_EXPIRES_SOON: Words(
        _WARNING, "When it has expired, senders that check certificates stop delivering.", "RFC 5280 §4.1.2.5"
    ),
    Code.CONNECT_TLSA: Words(
        _ERROR,
        "Senders that honour DANE do not deliver: no TLSA record fits what the server shows.",
        "RFC 7672 §2.2",
    ),
    Code.CONNECT_REFUSED: Words(
        _ERROR, "A sender that honours the domain's policies would not deliver here.", "RFC 8461 §5"
    ),
    # Our config
    Code.OURS_OK: Words(_OK, "The DNS says what our config wants.", "gateway dns --check"),
    Code.OURS_MISSING: Words(
        _WARNING, "Our config relies on a record that is not published.", "gateway dns --check"
    ),
    Code.OURS_DIFFERS: Words(_ERROR, "The DNS says something else than our config.", "gateway dns --check"),
}
