"""Can the sender's domain receive mail (RFC 5321 §5.1, RFC 7505)? A domain that cannot take a bounce is seldom honest."""

from gateway.auth.results import SenderDomain
from gateway.dns.resolver import Answer, Missing, Mx, NotFound, RecordType, Resolver, Temporary
from gateway.mail.address import Mailbox


async def check_sender_domain(mail_from: Mailbox | None, resolver: Resolver) -> SenderDomain:
    """Look for an MX, else for an address, as one who had to send a bounce would."""
    if mail_from is None or mail_from.domain.startswith("["):
        return SenderDomain.NOT_CHECKED
    exchanges = await resolver.query(mail_from.domain, RecordType.MX)
    match exchanges:
        case Temporary():
            return SenderDomain.TEMPERROR
        case Answer():
            # RFC 7505 §3: a null MX stands alone; beside others it means nothing
            hosts = [mx.exchange for mx in exchanges.records if isinstance(mx, Mx)]
            return SenderDomain.MX if any(hosts) else SenderDomain.NULL_MX
        case NotFound(missing=Missing.NXDOMAIN):
            return SenderDomain.NXDOMAIN
        case NotFound():
            return await _check_addresses(mail_from.domain, resolver)


async def _check_addresses(domain: str, resolver: Resolver) -> SenderDomain:
    """The implicit MX (RFC 5321 §5.1)."""
    in_doubt = False
    for record_type in (RecordType.A, RecordType.AAAA):
        outcome = await resolver.query(domain, record_type)
        if isinstance(outcome, Answer):
            return SenderDomain.ADDRESS
        in_doubt = in_doubt or isinstance(outcome, Temporary)
    return SenderDomain.TEMPERROR if in_doubt else SenderDomain.NONE
