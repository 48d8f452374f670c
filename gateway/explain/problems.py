"""Each cause of a result in one line, for a terminal: what happened, and the section that says so.

docs/problems.md has the long form: who acts, and what to do.
"""

from typing import Final, NamedTuple

from gateway.auth.results import Problem
from gateway.tlspolicy.model import TlsProblem


class Words(NamedTuple):
    """One line and its source."""

    says: str
    section: str


WORDS: Final = {
    Problem.DNS_TIMEOUT: Words("no DNS server answered in time", "RFC 1035 §4.2"),
    Problem.DNS_SERVFAIL: Words(
        "the resolver gave up: a broken or bogus zone, or servers that are down", "RFC 4035 §5.5"
    ),
    Problem.DNS_REFUSED: Words("the resolver does not serve this host", "RFC 1035 §4.1.1"),
    Problem.DNS_MALFORMED: Words("the DNS answer makes no sense", "RFC 1035 §4"),
    Problem.DNS_BUDGET: Words(
        "this message needed more DNS questions, or more time for them, than one may have", "RFC 7208 §11.1"
    ),
    Problem.SPF_SYNTAX: Words("the domain's SPF record has a syntax error", "RFC 7208 §4.6"),
    Problem.SPF_SEVERAL_RECORDS: Words("the domain publishes several SPF records", "RFC 7208 §4.5"),
    Problem.SPF_TOO_MANY_LOOKUPS: Words("the SPF record needs more than ten DNS lookups", "RFC 7208 §4.6.4"),
    Problem.SPF_TOO_MANY_VOID_LOOKUPS: Words(
        "the SPF record asks for more than two names without records", "RFC 7208 §4.6.4"
    ),
    Problem.SPF_TOO_MANY_MX: Words(
        "an mx term of the SPF record names more than ten hosts", "RFC 7208 §4.6.4"
    ),
    Problem.SPF_RECORD_TOO_LARGE: Words("the SPF record is larger than any honest one", "RFC 7208 §3.4"),
    Problem.SPF_REDIRECT_WITHOUT_RECORD: Words(
        "redirect= names a domain without an SPF record", "RFC 7208 §6.1"
    ),
    Problem.SPF_INCLUDE_WITHOUT_RECORD: Words(
        "include: names a domain without an SPF record", "RFC 7208 §5.2"
    ),
    Problem.SPF_DOMAIN_INVALID: Words(
        "the identity's domain is no name that DNS could know", "RFC 7208 §4.3"
    ),
    Problem.SPF_INTERNAL: Words(
        "a fault of the gateway kept the SPF record from being evaluated", "RFC 7208 §2.6.6"
    ),
    Problem.DKIM_SYNTAX: Words("the DKIM-Signature field cannot be read", "RFC 6376 §3.5"),
    Problem.DKIM_VERSION: Words("the signature is of an unknown DKIM version", "RFC 6376 §3.5 v="),
    Problem.DKIM_MISSING_TAG: Words("the signature lacks a tag that it must have", "RFC 6376 §3.5"),
    Problem.DKIM_DUPLICATE_TAG: Words("the signature has the same tag twice", "RFC 6376 §3.2"),
    Problem.DKIM_ALGORITHM_UNKNOWN: Words("the signature uses an unknown algorithm", "RFC 6376 §3.3"),
    Problem.DKIM_CANONICALIZATION_UNKNOWN: Words(
        "the signature uses an unknown canonicalization", "RFC 6376 §3.4"
    ),
    Problem.DKIM_QUERY_METHOD_UNKNOWN: Words(
        "the signature's key is not to be had by DNS", "RFC 6376 §3.5 q="
    ),
    Problem.DKIM_DOMAIN_MISMATCH: Words("i= is not within the signing domain d=", "RFC 6376 §3.5 i="),
    Problem.DKIM_FROM_NOT_SIGNED: Words("the signature leaves From out, which it must not", "RFC 6376 §5.4"),
    Problem.DKIM_SEVERAL_FROM: Words(
        "the message has several From fields: readers would differ", "RFC 6376 §8.15"
    ),
    Problem.DKIM_EXPIRED: Words("the signature has expired", "RFC 6376 §3.5 x="),
    Problem.DKIM_FROM_THE_FUTURE: Words(
        "the signature was made in the future: somebody's clock is wrong", "RFC 6376 §3.5 t="
    ),
    Problem.DKIM_SHA1: Words("the signature uses SHA-1, which is forbidden", "RFC 8301 §3.1"),
    Problem.DKIM_SHORT_KEY: Words("the key is shorter than 1024 bits", "RFC 8301 §3.2"),
    Problem.DKIM_BODY_LENGTH: Words(
        "l= leaves the end of the body unsigned: anything could be added", "RFC 6376 §8.2"
    ),
    Problem.DKIM_UNSIGNED_FIELD: Words(
        "a second Subject, To or the like was added that the signature does not cover", "RFC 6376 §8.15"
    ),
    Problem.DKIM_BODY_TOO_SHORT: Words("the body is shorter than l= says", "RFC 6376 §3.5 l="),
    Problem.DKIM_BODY_HASH: Words("the body was changed after signing", "RFC 6376 §6.1.3"),
    Problem.DKIM_SIGNATURE: Words(
        "the signed header fields were changed after signing, or the signature is forged", "RFC 6376 §6.1.3"
    ),
    Problem.DKIM_KEY_MISSING: Words("the key is not in DNS", "RFC 6376 §6.1.2"),
    Problem.DKIM_KEY_REVOKED: Words("the key has been revoked", "RFC 6376 §3.6.1 p="),
    Problem.DKIM_KEY_SYNTAX: Words("the key record cannot be read", "RFC 6376 §3.6.1"),
    Problem.DKIM_KEY_TOO_LARGE: Words("the key is larger than any honest one", "RFC 6376 §8.1"),
    Problem.DKIM_KEY_SEVERAL: Words("there are several key records at this selector", "RFC 6376 §3.6.2.2"),
    Problem.DKIM_KEY_ALGORITHM: Words("the key is not of the signature's kind", "RFC 6376 §6.1.2"),
    Problem.DKIM_KEY_HASH: Words("the key does not allow the signature's hash", "RFC 6376 §3.6.1 h="),
    Problem.DKIM_KEY_SERVICE: Words("the key is not for e-mail", "RFC 6376 §3.6.1 s="),
    Problem.DKIM_KEY_STRICT: Words("the key (t=s) does not allow i= in a subdomain", "RFC 6376 §3.6.1 t="),
    Problem.DKIM_KEY_TESTING: Words("the key's owner is only testing (t=y)", "RFC 6376 §3.6.1 t="),
    Problem.DKIM_TOO_MANY: Words("the message has more signatures than are looked at", "RFC 6376 §8.4"),
    Problem.DKIM_HEADER_CUT: Words(
        "the header section is too large for its fields to be told apart", "RFC 6376 §5.4.2"
    ),
    Problem.DMARC_NO_AUTHOR: Words("From names no author", "RFC 9989 §5.3.1"),
    Problem.DMARC_SEVERAL_AUTHORS: Words(
        "From names several authors; nobody can vouch for all of them", "RFC 9989 §5.3.1"
    ),
    Problem.DMARC_SEVERAL_FROM: Words("the message has several From fields", "RFC 5322 §3.6"),
    Problem.DMARC_AUTHOR_UNCLEAR: Words("From cannot be read in exactly one way", "RFC 5322 §3.4"),
    Problem.DMARC_AUTHOR_DOMAIN: Words(
        "the author's domain is no name that DNS could know", "RFC 9989 §5.3.1"
    ),
    Problem.DMARC_MESSAGE_AMBIGUOUS: Words(
        "readers may differ in what the message's header is", "RFC 5322 §2.2"
    ),
    Problem.DMARC_SEVERAL_RECORDS: Words("the domain publishes several DMARC records", "RFC 9989 §4.10"),
    Problem.DMARC_SYNTAX: Words("the domain's DMARC record cannot be used", "RFC 9989 §4.8"),
    Problem.ARC_TOO_MANY: Words("the ARC chain is longer than is followed", "RFC 8617 §5.2"),
    Problem.ARC_INSTANCE: Words("an ARC field has no instance number that can be read", "RFC 8617 §4.2.1"),
    Problem.ARC_STRUCTURE: Words("an ARC Set lacks a field, or has one twice", "RFC 8617 §5.2"),
    Problem.ARC_FAILED_BEFORE: Words("its last sealer found it broken already", "RFC 8617 §5.1.3"),
    Problem.ARC_CHAIN_VALIDATION: Words(
        "a seal says something else of the chain before it than it must", "RFC 8617 §5.2"
    ),
    Problem.ARC_MESSAGE_SIGNATURE: Words("the message is not as its last sealer let it go", "RFC 8617 §5.2"),
    Problem.ARC_SEAL: Words("a seal is not its sealer's, or not over this chain", "RFC 8617 §5.2"),
    Problem.IPREV_NO_NAME: Words("the client's address has no name", "RFC 8601 §3"),
    Problem.IPREV_MISMATCH: Words(
        "none of the names of the client's address leads back to it", "RFC 8601 §3"
    ),
    Problem.IPREV_TOO_MANY_NAMES: Words(
        "the client's address has more names than are looked at", "RFC 7208 §5.5"
    ),
    Problem.INTERNAL: Words("a fault of the gateway; its log has the traceback", "RFC 8601 §2.7"),
}

TLS_WORDS: Final = {
    TlsProblem.NULL_MX: Words("the domain says that it never receives mail", "RFC 7505 §3"),
    TlsProblem.NO_DOMAIN: Words("the domain does not exist", "RFC 5321 §5.1"),
    TlsProblem.NO_HOST: Words("the domain has neither MX nor address", "RFC 5321 §5.1"),
    TlsProblem.ROUTE_TIMEOUT: Words("no DNS server told the domain's mail servers in time", "RFC 5321 §5.1"),
    TlsProblem.ROUTE_SERVFAIL: Words(
        "the resolver could not find out the domain's mail servers", "RFC 7672 §2.1.2"
    ),
    TlsProblem.ROUTE_REFUSED: Words("the resolver does not serve this host", "RFC 1035 §4.1.1"),
    TlsProblem.ROUTE_MALFORMED: Words("no MX of the domain names a host", "RFC 5321 §5.1"),
    TlsProblem.ROUTE_LOOP: Words("the domain's best mail server is this one", "RFC 5321 §5.1"),
    TlsProblem.NO_ADDRESS: Words("the host has no address", "RFC 5321 §5.1"),
    TlsProblem.STS_RECORD_INVALID: Words("the _mta-sts record cannot be read", "RFC 8461 §3.1"),
    TlsProblem.STS_SEVERAL_RECORDS: Words("there are several _mta-sts records", "RFC 8461 §3.1"),
    TlsProblem.STS_DNS: Words("the _mta-sts record could not be looked up", "RFC 8461 §3.3"),
    TlsProblem.STS_RECORD_GONE: Words(
        "the _mta-sts record is gone, the policy stands until it expires", "RFC 8461 §3.3"
    ),
    TlsProblem.STS_FETCH_CONNECT: Words("the policy host cannot be reached", "RFC 8461 §3.3"),
    TlsProblem.STS_FETCH_TIMEOUT: Words("the policy host takes too long", "RFC 8461 §3.3"),
    TlsProblem.STS_FETCH_BUSY: Words("the gateway had no time to fetch the policy", "RFC 8461 §3.3"),
    TlsProblem.STS_FETCH_CERTIFICATE: Words("the policy host's certificate proves nothing", "RFC 8461 §3.3"),
    TlsProblem.STS_FETCH_STATUS: Words("the policy host does not answer 200", "RFC 8461 §3.3"),
    TlsProblem.STS_FETCH_REDIRECT: Words(
        "the policy host redirects, which must not be followed", "RFC 8461 §3.3"
    ),
    TlsProblem.STS_FETCH_TYPE: Words("the policy is not served as plain text", "RFC 8461 §3.2"),
    TlsProblem.STS_FETCH_TOO_LARGE: Words("the policy is larger than 64 KiB", "RFC 8461 §3.3"),
    TlsProblem.STS_POLICY_INVALID: Words("the policy cannot be read", "RFC 8461 §3.2"),
    TlsProblem.STS_MX_NOT_LISTED: Words("the policy does not list this mail server", "RFC 8461 §4.1"),
    TlsProblem.DANE_TLSA_DNS: Words("the host's TLSA records could not be looked up", "RFC 7672 §2.1.2"),
    TlsProblem.DANE_ADDRESS_DNS: Words("the host's addresses could not be looked up", "RFC 7672 §2.1.2"),
    TlsProblem.DANE_UNUSABLE: Words("the host's TLSA records cannot be used for mail", "RFC 7672 §2.2"),
    TlsProblem.DANE_REQUIRED: Words("you demand DANE, and the host has none", "RFC 7672 §6"),
    TlsProblem.DANE_NOT_VALIDATING: Words(
        "your resolver does not validate DNSSEC, so that DANE is off", "RFC 7672 §2.1.3"
    ),
    TlsProblem.TLS_NOT_OFFERED: Words("the server does not offer STARTTLS", "RFC 3207 §4"),
    TlsProblem.TLS_REFUSED: Words("the server offers STARTTLS and refuses it", "RFC 3207 §4"),
    TlsProblem.TLS_INJECTION: Words("something was put in after the answer to STARTTLS", "RFC 3207 §6"),
    TlsProblem.TLS_HANDSHAKE: Words("the TLS handshake failed", "RFC 8446 §4"),
    TlsProblem.CERTIFICATE_NAME: Words("the certificate is for another name", "RFC 9525 §6"),
    TlsProblem.CERTIFICATE_EXPIRED: Words("the certificate is not valid now", "RFC 5280 §4.1.2.5"),
    TlsProblem.CERTIFICATE_UNTRUSTED: Words("the certificate is from nobody who is trusted", "RFC 5280 §6"),
    TlsProblem.CERTIFICATE_TLSA: Words("no TLSA record vouches for the certificate", "RFC 7672 §3.2"),
    TlsProblem.REQUIRETLS_NOT_OFFERED: Words(
        "the message asks for REQUIRETLS and the server does not know it", "RFC 8689 §4.2.1"
    ),
    TlsProblem.OVERRIDE_REFUSE: Words("your config says that nothing is delivered there", "RFC 8461 §5"),
}
"""The same of outbound TLS."""
