"""Domains for the doctor, as zone texts, and what it says of them."""

from collections.abc import Mapping
from typing import Final

from gateway.dns.stub import Validation
from gateway.dns.zone import ZoneResolver
from gateway.doctor.case import Tools
from gateway.doctor.examine import examine
from gateway.doctor.report import Report
from gateway.tlspolicy.model import TlsProblem
from gateway.tlspolicy.mta_sts.fetch import Fetched, FetchFailure
from gateway.tlspolicy.mta_sts.policy import PolicyError, parse_policy

DOMAIN: Final = "example.net"
HOST: Final = """\
@ MX 10 mx
mx A 192.0.2.1
1.2.0.192.in-addr.arpa. PTR mx.example.net.
"""


class Policies:
    """Policy hosts: a text by domain; what is not here cannot be reached."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    async def fetch(self, domain: str) -> Fetched | FetchFailure:
        text = self._texts.get(domain)
        if text is None:
            return FetchFailure(problem=TlsProblem.STS_FETCH_CONNECT, detail="nobody is there")
        try:
            return Fetched(policy=parse_policy(text.encode()), text=text)
        except PolicyError as error:
            return FetchFailure(problem=TlsProblem.STS_POLICY_INVALID, detail=str(error))

    async def aclose(self) -> None:
        pass


async def validates() -> Validation:
    return Validation.YES


def tools(zone: str, *, secure: bool = False, policy: str | None = None) -> Tools:
    """For a zone text with `example.net.` as its origin."""
    return Tools(
        resolver=ZoneResolver.from_text(zone, origin=f"{DOMAIN}.", secure=secure),
        validation=validates,
        fetcher=Policies({} if policy is None else {DOMAIN: policy}),
    )


async def examined(zone: str, *, secure: bool = False, policy: str | None = None) -> Report:
    return await examine(DOMAIN, tools(zone, secure=secure, policy=policy))
