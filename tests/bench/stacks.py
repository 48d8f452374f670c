"""What is measured: the gateway by each of its doors, and its peers from Debian; loopback, private directories, high ports.

All of them ask one unbound, which knows the corpus' zone. A peer's figure is worth nothing unless it checks what we check: each
one's `judged` says, from its own log, of how many messages it found SPF, DKIM and DMARC good.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.bench.load import Way, compiled
from tests.bench.processes import free_port, running, wait_for
from tests.live.postfix import PostfixBed, wait_until

_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

_UNBOUND: Final = """\
server:
    directory: "{directory}"
    username: ""
    chroot: ""
    pidfile: ""
    use-syslog: no
    interface: 127.0.0.1@{port}
    do-ip6: no
    module-config: "iterator"
    num-threads: 1
    msg-cache-size: 64m
    rrset-cache-size: 128m
    local-zone: "127.in-addr.arpa." nodefault
remote-control:
    control-enable: no
auth-zone:
    name: "."
    zonefile: "{zone}"
    for-downstream: no
    for-upstream: yes
    fallback-enabled: no
"""

_GATEWAY: Final = """\
authserv_id = "mx.example.net"
local_domains = ["example.net", "bed.test"]
workers = {workers}
[dns]
servers = ["{resolver}"]
cache_entries = {cache_entries}
"""

# Only the modules that are measured. A large text costs the same with all of Debian's own configuration: rspamd stems its words before any module.
_RSPAMD: Final = """\
options {{
    pidfile = "{directory}/rspamd.pid";
    filters = "dkim";
    local_addrs = [];
    url_tld = "/usr/share/rspamd/effective_tld_names.dat";
    cache_file = "{directory}/symbols.cache";
    words_decay = 600;
    tempdir = "{directory}";
    rrd = "";
    dns {{ nameserver = ["127.0.0.1:{resolver_port}:1"]; timeout = 5s; }}
}}
logging {{ type = "file"; filename = "{directory}/rspamd.log"; level = "info"; }}
metric {{ name = "default"; actions {{ reject = 1000; }} }}
worker "rspamd_proxy" {{
    bind_socket = "{socket} mode=0666";
    milter = yes;
    timeout = 120s;
    count = {workers};
    upstream "local" {{ default = yes; self_scan = yes; }}
}}
dkim {{ check_local = true; check_authed = true; }}
spf {{ check_local = true; check_authed = true; }}
dmarc {{ check_local = true; check_authed = true; }}
arc {{ check_local = true; check_authed = true; }}
lua = "{directory}/start.lua";
modules {{ path = "{directory}/modules"; }}
"""

_OPENDKIM: Final = """\
Mode v
Socket local:{socket}
UMask 000
Syslog no
InternalHosts {nobody}
ExternalIgnoreList {nobody}
AuthservID mx.example.net
AlwaysAddARHeader yes
Nameservers 127.0.0.1@{resolver_port}
PidFile {directory}/opendkim.pid
"""

_OPENDMARC: Final = """\
Socket local:{socket}
UMask 000
Syslog false
AuthservID mx.example.net
TrustedAuthservIDs mx.example.net
IgnoreHosts {nobody}
IgnoreAuthenticatedClients false
SPFSelfValidate true
SPFIgnoreResults true
RejectFailures false
HistoryFile {directory}/history
PidFile {directory}/opendmarc.pid
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One way for mail to go.

    Attributes:
        address: where the load generator sends to.
        components: name → the root of its process tree.
        judged: how many messages its own log says passed every check, from the start; None: it does not say.
        settle: waits until it has done what it put off.
    """

    name: str
    way: Way
    address: str
    components: Mapping[str, int] = field(default_factory=dict)
    judged: Callable[[], int] | None = None
    settle: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Ground:
    """What every stack stands on."""

    directory: Path
    resolver_port: int
    sink_port: int
    sink_pid: int

    def below(self, name: str) -> Path:
        """A directory of its own for one stack, which unprivileged servers may enter and write."""
        path = self.directory / re.sub(r"\W+", "-", name)
        path.mkdir()
        path.chmod(0o777)
        return path


def program(name: str, package: str) -> str:
    found = shutil.which(name, path=_PATH)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: {package})")
    return found


@contextmanager
def open_resolver(directory: Path, zone: Path) -> Iterator[int]:
    """An unbound that knows the zone; its port."""
    port = free_port()
    config = directory / f"unbound-{port}.conf"
    config.write_text(_UNBOUND.format(directory=directory, port=port, zone=zone))
    command: list[str | Path] = [program("unbound", "unbound"), "-d", "-c", config]
    with running(command, log=directory / "unbound.log") as process:
        wait_for(process, ("127.0.0.1", port))
        yield port


@contextmanager
def open_ground(directory: Path, zone: Path) -> Iterator[Ground]:
    with ExitStack() as stack:
        resolver_port = stack.enter_context(open_resolver(directory, zone))
        sink_port = free_port()
        sink = stack.enter_context(running([compiled("sink.c"), str(sink_port)]))
        wait_for(sink, ("127.0.0.1", sink_port))
        yield Ground(directory, resolver_port, sink_port, sink.pid)


def sink_stack(ground: Ground) -> Stack:
    return Stack(
        name="sink",
        way=Way.SMTP,
        address=f"127.0.0.1:{ground.sink_port}",
        components={"sink": ground.sink_pid},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A running gateway, with all checks, rules, stamps, logs and metrics on, as `gateway serve` runs it."""

    pid: int
    log: Path
    smtp_port: int
    outbound_port: int
    milter_socket: Path

    def stack(self, name: str, way: Way) -> Stack:
        address = str(self.milter_socket) if way is Way.MILTER else f"127.0.0.1:{self.smtp_port}"
        return Stack(
            name=name, way=way, address=address, components={"gateway": self.pid}, judged=self.judged
        )

    def relay(self, name: str) -> Stack:
        return Stack(
            name=name,
            way=Way.SMTP,
            address=f"127.0.0.1:{self.outbound_port}",
            components={"gateway": self.pid},
        )

    def judged(self) -> int:
        """Messages that were accepted with SPF, DMARC and iprev good, by its log."""
        count = 0
        with self.log.open("rb") as lines:
            for line in lines:
                if b'"message.judged"' in line:
                    event = json.loads(line)
                    found = (event["disposition"], event["spf"], event["dmarc"], event["iprev"])
                    count += found == ("accept", "pass", "pass", "pass")
        return count


@contextmanager
def open_gateway(
    ground: Ground,
    name: str,
    *,
    workers: int = 1,
    resolver_port: int | None = None,
    cache_entries: int = 50_000,
    inbound: str = "",
    milter: str = "",
    more: str = "",
    watched: bool = True,
) -> Iterator[Gateway]:
    """A gateway with its doors open.

    `inbound` and `milter` are more keys of those sections, `more` is sections behind all; `watched`: with metrics, which there are none
    of without `[http]`.
    """
    directory = ground.below(name)
    smtp_port, outbound_port = free_port(), free_port()
    milter_socket = directory / "milter.sock"
    head = _GATEWAY.format(
        workers=workers,
        resolver=f"127.0.0.1:{resolver_port or ground.resolver_port}",
        cache_entries=cache_entries,
    )
    if watched:
        head += f'[http]\nlisten = "127.0.0.1:{free_port()}"\n'
    doors = (
        f'[inbound]\nlisten = ["127.0.0.1:{smtp_port}"]\ndownstream = "127.0.0.1:{ground.sink_port}"\n{inbound}\n'
        f'[milter]\nlisten = "unix:{milter_socket}"\nsocket_mode = 0o666\n{milter}\n'
        f'[outbound]\nlisten = ["127.0.0.1:{outbound_port}"]\nclients = ["127.0.0.0/8"]\nown_addresses = []\n'
        f"remote_port = {ground.sink_port}\n[outbound_tls]\nmta_sts = false\ndane = false\n{more}"
    )
    config, log = directory / "gateway.toml", directory / "gateway.log"
    config.write_text(head + doors)
    command: list[str | Path] = [sys.executable, "-m", "gateway", "serve", "--config", config]
    with running(command, log=log) as process:
        try:
            wait_for(process, ("127.0.0.1", smtp_port))
            wait_for(process, str(milter_socket))
        except (ChildProcessError, OSError) as error:
            pytest.fail(f"{error}:\n{log.read_text()}")
        yield Gateway(
            pid=process.pid,
            log=log,
            smtp_port=smtp_port,
            outbound_port=outbound_port,
            milter_socket=milter_socket,
        )


@contextmanager
def open_rspamd(ground: Ground, name: str, *, workers: int) -> Iterator[Stack]:
    """rspamd with its modules spf, dkim, dmarc and arc, and no others, as a milter."""
    directory = ground.below(name)
    socket = directory / "milter.sock"
    (directory / "modules").mkdir()
    for module in ("spf", "dmarc", "arc"):
        (directory / "modules" / f"{module}.lua").symlink_to(f"/usr/share/rspamd/plugins/{module}.lua")
    (directory / "start.lua").write_text("")
    config = directory / "rspamd.conf"
    config.write_text(
        _RSPAMD.format(
            directory=directory,
            resolver_port=ground.resolver_port,
            socket=socket,
            workers=workers,
        )
    )
    user = ["-u", "_rspamd", "-g", "_rspamd"] if os.geteuid() == 0 else []
    log = directory / "rspamd.log"
    command: list[str | Path] = [program("rspamd", "rspamd"), "-f", *user, "-c", config]
    with running(command, log=directory / "start.log") as process:
        wait_for(process, str(socket))

        def judged() -> int:
            symbols = ("R_SPF_ALLOW", "R_DKIM_ALLOW", "DMARC_POLICY_ALLOW")
            lines = log.read_text(errors="replace").splitlines()
            return sum(all(symbol in line for symbol in symbols) for line in lines)

        yield Stack(
            name=name, way=Way.MILTER, address=str(socket), components={"rspamd": process.pid}, judged=judged
        )


@contextmanager
def open_opendkim(ground: Ground) -> Iterator[Stack]:
    directory = ground.below("opendkim")
    socket, nobody = directory / "milter.sock", directory / "nobody"
    nobody.write_text("192.0.2.254\n")
    config = directory / "opendkim.conf"
    config.write_text(
        _OPENDKIM.format(
            socket=socket, nobody=nobody, resolver_port=ground.resolver_port, directory=directory
        )
    )
    command: list[str | Path] = [program("opendkim", "opendkim"), "-f", "-x", config]
    with running(command, log=directory / "log") as process:
        wait_for(process, str(socket))
        yield Stack(
            name="opendkim", way=Way.MILTER, address=str(socket), components={"opendkim": process.pid}
        )


@contextmanager
def open_opendmarc(ground: Ground) -> Iterator[Stack]:
    directory = ground.below("opendmarc")
    socket, nobody = directory / "milter.sock", directory / "nobody"
    nobody.write_text("192.0.2.254\n")
    config = directory / "opendmarc.conf"
    config.write_text(_OPENDMARC.format(socket=socket, nobody=nobody, directory=directory))
    command: list[str | Path] = [program("opendmarc", "opendmarc"), "-f", "-c", config]
    environment = {
        "LD_PRELOAD": str(compiled("resolver_port.c", "-shared", "-fPIC", "-ldl")),
        "RESOLVER_PORT": str(ground.resolver_port),
    }
    with running(command, log=directory / "log", environment=environment) as process:
        wait_for(process, str(socket))
        yield Stack(
            name="opendmarc", way=Way.MILTER, address=str(socket), components={"opendmarc": process.pid}
        )


_DISCARDING: Final = {
    "relay_domains": "example.net",
    "relay_transport": "discard:",
    "smtpd_relay_restrictions": "permit_auth_destination, reject",
    "smtpd_client_connection_rate_limit": "0",
    "milter_default_action": "tempfail",
    "milter_protocol": "6",
}


@contextmanager
def open_postfix(ground: Ground, name: str, *milters: Stack) -> Iterator[tuple[Stack, PostfixBed]]:
    """A Postfix that discards mail for example.net, and keeps mail for alice@bed.test to be looked at."""
    directory = ground.directory / re.sub(r"\W+", "-", name)
    sockets = [f"unix:{milter.address}" for milter in milters]
    bed = PostfixBed.start(directory, milters=sockets, extra=_DISCARDING)
    try:
        pid = bed._master_pid()
        assert pid is not None
        components = {"Postfix": pid}
        for milter in milters:
            components |= milter.components
        checkers = [milter.judged for milter in milters if milter.judged]
        yield (
            Stack(
                name=name,
                way=Way.SMTP,
                address=f"127.0.0.1:{bed.port}",
                components=components,
                judged=checkers[0] if checkers else None,
                settle=lambda: _drain(bed),
            ),
            bed,
        )
    finally:
        bed.stop()


def _drain(bed: PostfixBed) -> None:
    def is_empty() -> bool:
        try:
            return not bed.queue_ids("active") and not bed.queue_ids("incoming")
        except subprocess.CalledProcessError:  # a file went while it was looked at: the queue is not at rest
            return False

    wait_until(is_empty, "the queue to be empty", timeout_s=60)
