"""MTA-STS in a running gateway: a real policy host, a real store, restarts between."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from aiohttp import web
from structlog.testing import capture_logs

from gateway.cli.outbound_tls import OutboundTls
from gateway.dns.zone import ZoneResolver
from gateway.ops.config import HostPort, OutboundTlsSettings, Settings, StoreSettings, TlsPolicySettings
from gateway.ops.metrics import Metrics
from gateway.store import Store
from gateway.tlspolicy.model import Decision, TlsLevel, TlsProblem

RECORD = '_mta-sts.example.com. TXT "v=STSv1; id={}"\n'
ZONE = "example.com. MX 10 mx.example.com.\nmta-sts.example.com. A 127.0.0.1\n"
POLICY = "version: STSv1\nmode: {}\nmx: mx.example.com\nmax_age: 604800\n"


class PolicyHost:
    """Answers with a policy, as long as it runs."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        self.ca_file = directory / "ca.pem"
        authority.cert_pem.write_to_path(self.ca_file)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("mta-sts.example.com").configure_cert(self._context)
        self.mode = "enforce"
        self.port = 0
        self.asked = 0

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(text=POLICY.format(self.mode))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        application = web.Application()
        application.router.add_get("/.well-known/mta-sts.txt", self._answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=self._context).start()
        self.port = runner.addresses[0][1]
        try:
            yield
        finally:
            await runner.cleanup()


@pytest.fixture
def host(tmp_path: Path) -> PolicyHost:
    return PolicyHost(tmp_path)


@contextlib.asynccontextmanager
async def gateway(
    host: PolicyHost, directory: Path, zone: str, metrics: Metrics | None = None
) -> AsyncIterator[OutboundTls]:
    """One life of a gateway."""
    settings = Settings(
        authserv_id="mx.example.net",
        tls_policy=TlsPolicySettings(listen=HostPort("127.0.0.1", 8461)),
        outbound_tls=OutboundTlsSettings(
            ca_file=host.ca_file, policy_port=host.port or 1, fetch_timeout_s=5.0
        ),
        store=StoreSettings(url=f"sqlite:///{directory}/gateway.db"),
    )
    store = await asyncio.to_thread(Store.open, f"sqlite:///{directory}/gateway.db")
    outbound = OutboundTls(settings, ZoneResolver.from_text(zone), store.policies, metrics or Metrics())
    outbound.start()
    try:
        yield outbound
    finally:
        await outbound.close()
        await store.close(5)


async def decide(host: PolicyHost, directory: Path, zone: str) -> Decision:
    async with gateway(host, directory, zone) as outbound:
        return await outbound.decider.decide("example.com")


async def test_enforce_stays_in_force_over_a_restart_while_the_policy_host_is_down(
    host: PolicyHost, tmp_path: Path
) -> None:
    first = ZONE + RECORD.format("1")
    async with host.running():
        assert (await decide(host, tmp_path, first)).level is TlsLevel.SECURE
    assert (await decide(host, tmp_path, first)).level is TlsLevel.SECURE
    forged = await decide(host, tmp_path, ZONE + RECORD.format("2"))
    assert (forged.level, forged.sts.problem) == (TlsLevel.SECURE, TlsProblem.STS_FETCH_CONNECT)
    hidden = await decide(host, tmp_path, f"{ZONE}$TROUBLE _mta-sts.example.com. TXT timeout\n")
    assert (hidden.level, hidden.sts.problem) == (TlsLevel.SECURE, TlsProblem.STS_DNS)
    assert host.asked == 1


async def test_a_new_version_is_kept_over_a_restart_in_place_of_the_old_one(
    host: PolicyHost, tmp_path: Path
) -> None:
    async with host.running():
        await decide(host, tmp_path, ZONE + RECORD.format("1"))
        host.mode = "testing"
        await decide(host, tmp_path, ZONE + RECORD.format("2"))
    decision = await decide(host, tmp_path, ZONE + RECORD.format("2"))
    assert (decision.sts.mode, decision.level) == ("testing", TlsLevel.MAY)


async def test_each_change_is_one_line_and_one_count(host: PolicyHost, tmp_path: Path) -> None:
    metrics = Metrics()
    with capture_logs() as logs:
        async with host.running():
            async with gateway(host, tmp_path, ZONE + RECORD.format("1"), metrics) as outbound:
                await outbound.decider.decide("example.com")
            host.mode = "none"
            async with gateway(host, tmp_path, ZONE + RECORD.format("2"), metrics) as outbound:
                await outbound.decider.decide("example.com")
        async with gateway(host, tmp_path, ZONE + RECORD.format("3"), metrics) as outbound:
            await outbound.decider.decide("example.com")
    told = [
        (one["log_level"], one["change"], one["before"], one["mode"], one["problem"])
        for one in logs
        if one["event"] == "mta_sts.policy"
    ]
    assert told == [
        ("info", "fetched", None, "enforce", None),
        ("warning", "weakened", "enforce", "none", None),
        ("info", "fetch-failed", "none", "none", "mta-sts.fetch-connect"),  # nothing is lost by it
    ]
    body, _ = metrics.exposition("")
    assert b'gateway_mta_sts_policies_total{change="weakened",problem=""} 1.0' in body
    assert (
        b'gateway_mta_sts_policies_total{change="fetch-failed",problem="mta-sts.fetch-connect"} 1.0' in body
    )


async def test_a_renewal_that_fails_under_enforce_is_a_warning(host: PolicyHost, tmp_path: Path) -> None:
    async with host.running():
        await decide(host, tmp_path, ZONE + RECORD.format("1"))
    with capture_logs() as logs:
        await decide(host, tmp_path, ZONE + RECORD.format("2"))
    (told,) = [one for one in logs if one["event"] == "mta_sts.policy"]
    assert (told["log_level"], told["change"], told["mode"]) == ("warning", "fetch-failed", "enforce")
    assert told["detail"]
