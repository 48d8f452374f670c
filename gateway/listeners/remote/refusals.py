"""What our mail server hears when no mail server of a domain could be asked: why, in codes and words (RFC 3463, RFC 7505, RFC 8461).

A route that does not exist is final. All else, security above all, may be better tomorrow: our mail server keeps the message.
"""

from typing import Final

from gateway.listeners.remote.session import SessionFacts
from gateway.mail.reply import Reply
from gateway.smtp.client import DownstreamFailure
from gateway.tlspolicy.model import NoRoute, TlsProblem

_FINAL: Final = {
    TlsProblem.NULL_MX: (556, "5.1.10", "takes no mail (null MX)"),  # RFC 7505 §4.2
    TlsProblem.NO_DOMAIN: (550, "5.1.2", "does not exist"),
    TlsProblem.NO_HOST: (550, "5.4.4", "has no mail server"),
    TlsProblem.NO_ADDRESS: (550, "5.4.4", "has no mail server with an address"),
    TlsProblem.ROUTE_LOOP: (554, "5.4.6", "its best mail server is this one: the mail would loop"),
    TlsProblem.OVERRIDE_REFUSE: (550, "5.7.1", "this site sends no mail there"),
}
_TRANSPORT: Final = {
    DownstreamFailure.CONNECT: "4.4.1",
    DownstreamFailure.TIMEOUT: "4.4.2",
    DownstreamFailure.LOST: "4.4.2",
    DownstreamFailure.CLOSING: "4.3.2",
    DownstreamFailure.REFUSED: "4.3.0",
    DownstreamFailure.PROTOCOL: "4.5.0",
    DownstreamFailure.TLS: "4.7.5",
}


def no_route(absence: NoRoute) -> Reply:
    """The domain has no mail server, or it cannot be known now."""
    if absence.temporary:
        return Reply.of(
            451, "4.4.3", f"{absence.domain}: its mail servers cannot be looked up now ({absence.problem})"
        )
    return final(absence.domain, absence.problem)


def final(domain: str, problem: TlsProblem) -> Reply:
    """There will be no mail server."""
    code, enhanced, words = _FINAL.get(problem, (550, "5.4.4", "cannot be routed"))
    return Reply.of(code, enhanced, f"{domain}: {words} ({problem})")


def barred(domain: str, host: str, problem: TlsProblem) -> Reply:
    """A policy lets nothing go to this host now. RFC 8461 §5 and RFC 7672 §2.2: that is never final."""
    return Reply.of(451, "4.7.5", f"{domain}: {host} may not be used now ({problem})")


def no_addresses(host: str) -> Reply:
    """They cannot be looked up now."""
    return Reply.of(451, "4.4.3", f"{host}: its addresses cannot be looked up now")


def not_reached(facts: SessionFacts) -> Reply:
    """One server could not be used."""
    failure = facts.failure or DownstreamFailure.PROTOCOL
    enhanced = _TRANSPORT[failure]
    if facts.reply and facts.reply.enhanced:
        enhanced = f"4{facts.reply.enhanced[1:]}"
    why = f"{facts.problem}: {facts.detail}" if failure is DownstreamFailure.TLS else facts.detail
    return Reply.of(451, enhanced, f"{facts.policy.host.name}[{facts.address}]: {why}"[:400])


def out_of_time(domain: str) -> Reply:
    """Our client would not wait any longer."""
    return Reply.of(451, "4.4.1", f"{domain}: none of its mail servers answered in time")


def too_many(domain: str) -> Reply:
    """There are as many connections as there may be."""
    return Reply.of(451, "4.3.2", f"{domain}: too many deliveries at a time, try again later")
