"""What the doctor is given where a gateway has a config: what is known of our own domains, and how they stand."""

from collections.abc import Callable

import structlog

from gateway.cli.dns import facts_of
from gateway.cli.errors import UsageFault
from gateway.cli.wiring import remote_port, validation_check
from gateway.dns.stub import StubResolver
from gateway.dns.zone import ZoneResolver
from gateway.doctor.case import Tools
from gateway.doctor.posture import Posture
from gateway.keys.errors import KeyDirectoryError
from gateway.ops.config import Settings
from gateway.publish.wanted import Facts
from gateway.tlspolicy.mta_sts.fetch import Fetcher


def own_facts(settings: Settings, domain: str, complain: Callable[[str], None]) -> Facts | None:
    """What our config knows of the domain, where it is one of ours; keys that cannot be read are no reason to look at nothing."""
    try:
        facts = facts_of(settings, domain)
    except (UsageFault, KeyDirectoryError) as error:
        complain(f"what the config knows of {domain} is left out: {error}")
        return None
    return facts if facts.is_local or facts.keys else None


def tools_for(
    settings: Settings, resolver: StubResolver | ZoneResolver, fetcher: Fetcher
) -> Callable[[str], Tools]:
    """What the web pages examine a domain with; nothing is connected to but its MTA-STS policy host."""
    log = structlog.get_logger().bind()

    def tools(domain: str) -> Tools:
        return Tools(
            resolver=resolver,
            validation=validation_check(resolver),
            fetcher=fetcher,
            port=remote_port(settings.outbound),
            facts=own_facts(settings, domain, lambda fault: log.warning("doctor.own-domain", fault=fault)),
        )

    return tools


def build_posture(settings: Settings, resolver: StubResolver | ZoneResolver, fetcher: Fetcher) -> Posture:
    """How our own domains stand, for the web page."""
    return Posture(settings.local_domains, tools_for(settings, resolver, fetcher))
