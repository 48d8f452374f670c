"""What each check answers: its result word (RFC 8601 §2.7), whom it speaks of, and, where it is not a pass, why.

The result words *are* the enum values; they go as they stand into Authentication-Results, logs, metrics and rules.
`Problem` names the cause of a result in one token: the log field, the metric label and the anchor in docs/problems.md.
"""

from enum import StrEnum
from typing import Final

from gateway.mail.authentication_results import MethodResult
from gateway.mail.envelope import IpAddress
from gateway.mail.value import Value


class SpfStatus(StrEnum):
    """RFC 7208 §2.6."""

    NONE = "none"  # no record: the domain says nothing about who may send for it
    NEUTRAL = "neutral"  # the domain explicitly says nothing about this address
    PASS = "pass"  # this address may send for this domain
    FAIL = "fail"  # it may not
    SOFTFAIL = "softfail"  # it probably may not
    TEMPERROR = "temperror"  # trying again later may help: usually DNS
    PERMERROR = "permerror"  # the domain's record is broken: its owner must mend it
    POLICY = "policy"  # a pass that our own rules do not count (RFC 8601 §2.4)


class DkimStatus(StrEnum):
    """RFC 8601 §2.7.1, for one signature."""

    NONE = "none"  # no signature; only ever the summary of a message without any
    PASS = "pass"
    FAIL = "fail"  # the signature or the body hash does not match: altered on the way, or forged
    POLICY = "policy"  # it would verify, but in a way not worth trust: SHA-1, a short key, l=
    NEUTRAL = "neutral"  # it cannot be understood: syntax, unknown algorithm or version
    TEMPERROR = "temperror"  # the key could not be fetched now
    PERMERROR = "permerror"  # it can never verify: no key, revoked key, From not signed


class DmarcStatus(StrEnum):
    """RFC 9989 §4.10 and RFC 8601 §2.7.4 as updated by it."""

    NONE = "none"  # no DMARC record applies
    PASS = "pass"
    FAIL = "fail"
    TEMPERROR = "temperror"  # a record or an identifier could not be looked up now
    PERMERROR = "permerror"  # no single author domain, or a record that cannot be used


class IprevStatus(StrEnum):
    """RFC 8601 §2.7.3."""

    PASS = "pass"  # the address has a name that has the address
    FAIL = "fail"  # it has names, none of which has the address
    TEMPERROR = "temperror"
    PERMERROR = "permerror"  # it has no name


class ArcStatus(StrEnum):
    """RFC 8617 §4.4; `temperror` is ours, and stamped as `fail`."""

    NONE = "none"  # no chain
    PASS = "pass"  # every seal is right, and the message is as the last sealer let it go
    FAIL = "fail"  # altered after the last seal, or the chain is broken or forged
    TEMPERROR = "temperror"  # a key could not be fetched now


class Problem(StrEnum):
    """The cause of a result that is not a plain pass, fail or none. Keep docs/problems.md in step: a test does."""

    # DNS, for any check
    DNS_TIMEOUT = "dns.timeout"
    DNS_SERVFAIL = "dns.servfail"
    DNS_REFUSED = "dns.refused"
    DNS_MALFORMED = "dns.malformed"
    DNS_BUDGET = "dns.budget"

    # SPF (RFC 7208)
    SPF_SYNTAX = "spf.syntax"
    SPF_SEVERAL_RECORDS = "spf.several-records"
    SPF_TOO_MANY_LOOKUPS = "spf.too-many-lookups"
    SPF_TOO_MANY_VOID_LOOKUPS = "spf.too-many-void-lookups"
    SPF_TOO_MANY_MX = "spf.too-many-mx"
    SPF_RECORD_TOO_LARGE = "spf.record-too-large"
    SPF_REDIRECT_WITHOUT_RECORD = "spf.redirect-without-record"
    SPF_INCLUDE_WITHOUT_RECORD = "spf.include-without-record"
    SPF_DOMAIN_INVALID = "spf.domain-invalid"
    SPF_INTERNAL = "spf.internal"

    # DKIM (RFC 6376)
    DKIM_SYNTAX = "dkim.syntax"
    DKIM_VERSION = "dkim.version"
    DKIM_MISSING_TAG = "dkim.missing-tag"
    DKIM_DUPLICATE_TAG = "dkim.duplicate-tag"
    DKIM_ALGORITHM_UNKNOWN = "dkim.algorithm-unknown"
    DKIM_CANONICALIZATION_UNKNOWN = "dkim.canonicalization-unknown"
    DKIM_QUERY_METHOD_UNKNOWN = "dkim.query-method-unknown"
    DKIM_DOMAIN_MISMATCH = "dkim.domain-mismatch"
    DKIM_FROM_NOT_SIGNED = "dkim.from-not-signed"
    DKIM_SEVERAL_FROM = "dkim.several-from"
    DKIM_EXPIRED = "dkim.expired"
    DKIM_FROM_THE_FUTURE = "dkim.from-the-future"
    DKIM_SHA1 = "dkim.sha1"
    DKIM_SHORT_KEY = "dkim.short-key"
    DKIM_BODY_LENGTH = "dkim.body-length"
    DKIM_UNSIGNED_FIELD = "dkim.unsigned-field"
    DKIM_BODY_TOO_SHORT = "dkim.body-too-short"
    DKIM_BODY_HASH = "dkim.body-hash"
    DKIM_SIGNATURE = "dkim.signature"
    DKIM_KEY_MISSING = "dkim.key-missing"
    DKIM_KEY_REVOKED = "dkim.key-revoked"
    DKIM_KEY_SYNTAX = "dkim.key-syntax"
    DKIM_KEY_TOO_LARGE = "dkim.key-too-large"
    DKIM_KEY_SEVERAL = "dkim.key-several"
    DKIM_KEY_ALGORITHM = "dkim.key-algorithm"
    DKIM_KEY_HASH = "dkim.key-hash"
    DKIM_KEY_SERVICE = "dkim.key-service"
    DKIM_KEY_STRICT = "dkim.key-strict"
    DKIM_KEY_TESTING = "dkim.key-testing"
    DKIM_TOO_MANY = "dkim.too-many-signatures"
    DKIM_HEADER_CUT = "dkim.header-cut"

    # DMARC (RFC 9989)
    DMARC_NO_AUTHOR = "dmarc.no-author"
    DMARC_SEVERAL_AUTHORS = "dmarc.several-authors"
    DMARC_SEVERAL_FROM = "dmarc.several-from"
    DMARC_AUTHOR_UNCLEAR = "dmarc.author-unclear"
    DMARC_AUTHOR_DOMAIN = "dmarc.author-domain"
    DMARC_MESSAGE_AMBIGUOUS = "dmarc.message-ambiguous"
    DMARC_SEVERAL_RECORDS = "dmarc.several-records"
    DMARC_SYNTAX = "dmarc.syntax"

    # ARC (RFC 8617)
    ARC_TOO_MANY = "arc.too-many-instances"
    ARC_INSTANCE = "arc.instance"
    ARC_STRUCTURE = "arc.structure"
    ARC_FAILED_BEFORE = "arc.failed-before"
    ARC_CHAIN_VALIDATION = "arc.chain-validation"
    ARC_MESSAGE_SIGNATURE = "arc.message-signature"
    ARC_SEAL = "arc.seal"

    # iprev (RFC 8601 §3)
    IPREV_NO_NAME = "iprev.no-name"
    IPREV_MISMATCH = "iprev.mismatch"
    IPREV_TOO_MANY_NAMES = "iprev.too-many-names"

    # Ours
    INTERNAL = "gateway.internal"


class SpfIdentity(StrEnum):
    """Which of the two identities (RFC 7208 §2.3, §2.4)."""

    HELO = "helo"
    MAIL_FROM = "mailfrom"


class SpfResult(Value, frozen=True, kw_only=True):
    """One SPF evaluation.

    Attributes:
        identity: HELO or MAIL FROM.
        domain: the domain that was asked, in A-labels; None where the identity has none.
        sender: `local-part@domain` as evaluated (`postmaster@…` where there was no local part).
        mechanism: the term that matched, as published, peer text cut and printable: `ip4:192.0.2.0/24`; None if none did.
        explanation: the domain's own words for a fail (`exp=`, RFC 7208 §6.2), printable and cut; never ours to vouch for.
        lookups: DNS terms counted against the limit of ten.
    """

    identity: SpfIdentity
    status: SpfStatus
    domain: str | None
    sender: str | None = None
    mechanism: str | None = None
    explanation: str | None = None
    lookups: int = 0
    problem: Problem | None = None


class DkimResult(Value, frozen=True, kw_only=True):
    """One DKIM-Signature field's result.

    Attributes:
        position: its place in `Message.fields`.
        domain: `d=`, in A-labels; None where the field is not readable that far. Likewise the next.
        selector: `s=`.
        auid: `i=`, or its default `@d`.
        algorithm: `a=` in lower case.
        key_bits: the RSA modulus' size, 256 for Ed25519, None where no key was had.
        canonicalization: `c=` in full: `relaxed/relaxed`.
        signature_start: the first 8 or more characters of `b=`, enough to tell signatures apart (RFC 6008 header.b).
        testing: the key's `t=y`.
        covers_whole_body: False where `l=` leaves bytes unsigned.
    """

    position: int
    status: DkimStatus
    domain: str | None = None
    selector: str | None = None
    auid: str | None = None
    algorithm: str | None = None
    key_bits: int | None = None
    canonicalization: str | None = None
    signature_start: str | None = None
    testing: bool = False
    covers_whole_body: bool = True
    problem: Problem | None = None

    @property
    def counts_for_dmarc(self) -> bool:
        """Whether DMARC may rely on it: a pass; `l=` and weak keys are `policy` already (RFC 9989 §4.4.1)."""
        return self.status is DkimStatus.PASS and self.covers_whole_body


class DmarcPolicy(StrEnum):
    """`p=`, `sp=`, `np=` (RFC 9989 §4.7): what the author domain's owner asks for."""

    NONE = "none"
    QUARANTINE = "quarantine"
    REJECT = "reject"


class Alignment(StrEnum):
    """`adkim=`, `aspf=` (RFC 9989 §4.7)."""

    RELAXED = "r"
    STRICT = "s"


class DmarcRecord(Value, frozen=True, kw_only=True):
    """A DMARC Policy Record as published, defaults filled in (RFC 9989 §4.7).

    `subdomain_policy` and `nonexistent_policy` are None where not published (they then fall back to `sp`, `p`).
    """

    domain: str
    policy: DmarcPolicy
    subdomain_policy: DmarcPolicy | None = None
    nonexistent_policy: DmarcPolicy | None = None
    dkim_alignment: Alignment = Alignment.RELAXED
    spf_alignment: Alignment = Alignment.RELAXED
    public_suffix: bool | None = None
    testing: bool = False
    aggregate_to: tuple[str, ...] = ()
    failure_to: tuple[str, ...] = ()
    failure_options: str = "0"


class DmarcResult(Value, frozen=True, kw_only=True):
    """The DMARC evaluation of one message.

    Attributes:
        author_domain: the From domain in A-labels; None where there is not exactly one.
        organizational_domain: of the author domain, by the tree walk; None where not found out.
        record: the record that applies; None where there is none.
        requested: what the record asks for this message after sp, np and psd, before `t=y` is taken into account.
        applied: what is to be done by the standard: `requested`, one level lower with `t=y`; NONE unless the status is FAIL,
            or PERMERROR for want of one author: then the strictest of the domains in From is given, and no domain.
        spf_aligned: the MAIL FROM SPF pass is in alignment.
        dkim_aligned: the signing domain in alignment that passed, or None.
        suffix_list_differs: the public suffix list would have found another organizational domain (only a metric); None where
            the two were not compared.
    """

    status: DmarcStatus
    author_domain: str | None = None
    organizational_domain: str | None = None
    record: DmarcRecord | None = None
    requested: DmarcPolicy = DmarcPolicy.NONE
    applied: DmarcPolicy = DmarcPolicy.NONE
    spf_aligned: bool = False
    dkim_aligned: str | None = None
    suffix_list_differs: bool | None = None
    problem: Problem | None = None


class ArcSet(Value, frozen=True, kw_only=True):
    """One custodian's part of a chain.

    Attributes:
        instance: 1 is the oldest.
        sealer: `d=` of the seal, in A-labels.
        results: what it says that it found; None where that cannot be read in exactly one way.
    """

    instance: int
    sealer: str
    results: tuple[MethodResult, ...] | None


class ArcResult(Value, frozen=True, kw_only=True):
    """The chain of one message.

    Attributes:
        sets: newest first; none where they form no chain. Believe none of it unless `status` is a pass.
        oldest_pass: the oldest instance whose message signature still fits; 0 where all do. Only for a pass.
        problem: at which step it broke, or the DNS failure.
        cause: what was wrong there, in the words of DKIM, whose signatures these are.
        failed_instance: whose field it was.
    """

    status: ArcStatus
    sets: tuple[ArcSet, ...] = ()
    oldest_pass: int | None = None
    problem: Problem | None = None
    cause: Problem | None = None
    failed_instance: int | None = None


class IprevResult(Value, frozen=True, kw_only=True):
    """The client's reverse DNS (RFC 8601 §3): `name` is the one that was confirmed."""

    status: IprevStatus
    client_ip: IpAddress
    name: str | None = None
    problem: Problem | None = None


class SenderDomain(StrEnum):
    """Whether the MAIL FROM domain can receive what bounces (RFC 5321 §5.1, RFC 7505)."""

    MX = "mx"
    ADDRESS = "address"  # no MX, but an A or AAAA: the implicit MX
    NULL_MX = "null-mx"  # it says that it never receives mail
    NONE = "none"  # the domain exists and has neither
    NXDOMAIN = "nxdomain"  # the domain does not exist
    TEMPERROR = "temperror"
    NOT_CHECKED = "not-checked"  # the null path, an address literal


class Evidence(Value, frozen=True, kw_only=True):
    """All that was found out about one message. None: not asked, because the session is one of our own."""

    spf_helo: SpfResult | None = None
    spf: SpfResult | None = None
    dkim: tuple[DkimResult, ...] = ()
    dmarc: DmarcResult | None = None
    arc: ArcResult | None = None
    iprev: IprevResult | None = None
    sender_domain: SenderDomain = SenderDomain.NOT_CHECKED


NO_EVIDENCE: Final = Evidence()


class NotSigned(StrEnum):
    """Why a message of our own leaves without a signature of ours."""

    NO_AUTHOR = "no-author"  # From does not name exactly one author (RFC 5322 §3.6.2)
    NO_KEY = "no-key"  # the author's domain is not ours, or has no key
    AMBIGUOUS = "ambiguous"  # a form that the next server may mend, which would break the signature
    NOT_PROVEN = "not-proven"  # it came in from outside, in this author's name but without proof
    ALREADY_SIGNED = "already-signed"  # it bears a good signature of each of our keys


class MadeSignature(Value, frozen=True, kw_only=True):
    """One signature of ours; `domain` and `selector` are the operator's own names."""

    domain: str
    selector: str
    algorithm: str

    def __str__(self) -> str:
        """What operators know the key by: `example.net/2026a`."""
        return f"{self.domain}/{self.selector}"


class Signing(Value, frozen=True, kw_only=True):
    """What became of signing a message of our own: the signatures, or why there are none."""

    made: tuple[MadeSignature, ...] = ()
    reason: NotSigned | None = None
