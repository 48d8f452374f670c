"""A DNSSEC world for tests: knot signs a root of our own, unbound validates it; loopback only, nothing of the host's.

    with DnsBed.running(directory, zones={"unsigned.test": "@ TXT hello"}, signed=["signed.test"]) as bed:
        resolver = StubResolver([bed.resolver_address])

Two domains are always there: `bogus.test`, signed but not with the key that the root names, and `dead.test`, whose servers are
down. A zone's text needs neither SOA nor NS; relative names are its own; `change` gives an unsigned one another text. What is not below a zone is NXDOMAIN, vouched for
by the root. Reverse zones (`2.0.192.in-addr.arpa`, `127.in-addr.arpa`) are zones like others.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

BOGUS: Final = "bogus.test"
DEAD: Final = "dead.test"
NEGATIVE_TTL: Final = 5
TSIG_NAME: Final = "gateway"
TSIG_SECRET: Final = "Z2F0ZXdheS1nYXRld2F5LWdhdGV3YXktZ2F0ZXdheSE="
"""The key that may update every zone but the root and `bogus.test`; `stranger` has the same secret and may not."""

_PROGRAMS: Final = ("knotd", "keymgr", "knotc", "unbound")
_START_S: Final = 15.0
_STOP_S: Final = 5.0
_SBIN: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

_ZONE_TOP: Final = """\
$ORIGIN {origin}
$TTL 300
@ SOA ns.bed.invalid. h.bed.invalid. {serial} 3600 600 86400 {negative}
@ NS ns.bed.invalid.
"""

_KNOT_CONF: Final = """\
server:
    rundir: "{directory}/run"
    listen: [ 127.0.0.1@{port} ]
log:
  - target: stderr
    any: warning
key:
  - id: {tsig_name}
    algorithm: hmac-sha256
    secret: {tsig_secret}
  - id: stranger
    algorithm: hmac-sha256
    secret: {tsig_secret}
acl:
  - id: updates
    key: {tsig_name}
    action: update
database:
    storage: "{directory}/db"
policy:
  - id: bed
    algorithm: ecdsap256sha256
    single-type-signing: on
    ksk-lifetime: 0
    cds-cdnskey-publish: none
template:
  - id: default
    storage: "{directory}/zones"
    zonefile-sync: -1
    zonefile-load: difference
    journal-content: all
  - id: signed
    storage: "{directory}/zones"
    zonefile-sync: -1
    zonefile-load: difference
    journal-content: all
    dnssec-signing: on
    dnssec-policy: bed
zone:
"""

# infra-cache-min-rtt: a busy machine may let knot wait for longer than the 50 ms that unbound otherwise grants.
# qname-minimisation asks for names that an unsigned zone on the same server cannot deny; nodefault opens what RFC 6303 closes.
_UNBOUND_CONF: Final = """\
server:
    directory: "{directory}"
    username: ""
    chroot: ""
    pidfile: ""
    use-syslog: no
    interface: 127.0.0.1@{port}
    access-control: 127.0.0.0/8 allow
    do-ip6: no
    qname-minimisation: no
    do-not-query-localhost: no
    module-config: "validator iterator"
    trust-anchor-file: "{directory}/root.key"
    trust-anchor-signaling: no
    cache-max-negative-ttl: {negative}
    infra-host-ttl: 5
    outbound-msg-retry: 1
    infra-cache-min-rtt: 400
    val-log-level: 2
    num-threads: 1
{local_zones}
remote-control:
    control-enable: no
{stubs}
"""
_STUB: Final = """\
stub-zone:
    name: "{name}."
    stub-addr: 127.0.0.1@{port}
"""


@dataclass(slots=True, kw_only=True)
class DnsBed:
    """Both servers, running.

    Attributes:
        directory: theirs alone.
        resolver_address: unbound's, as `127.0.0.1:port`.
        authority_port: knot's.
    """

    directory: Path
    resolver_address: str
    authority_port: int
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _log: Path = Path()
    _serial: int = 1

    @classmethod
    def start(
        cls,
        directory: Path,
        zones: Mapping[str, str],
        *,
        signed: Collection[str] = (),
        resolver_port: int | None = None,
    ) -> Self:
        """Start both and wait until they answer; skips the test where they are not installed.

        Args:
            directory: a private, empty one.
            zones: master-file text by zone name.
            signed: which of them are signed; one that `zones` does not hold is an empty zone.
            resolver_port: unbound's; one that is free, where it does not matter.
        """
        missing = [program for program in _PROGRAMS if shutil.which(program, path=_SBIN) is None]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)} (Debian: knot knot-dnssecutils unbound)")
        authority_port, dead_port, free_port = _free_ports(3)
        resolver_port = resolver_port or free_port
        bed = cls(
            directory=directory, resolver_address=f"127.0.0.1:{resolver_port}", authority_port=authority_port
        )
        bed._log = directory / "log"
        texts = {BOGUS: "@ TXT bogus", **dict.fromkeys(signed, ""), **zones}
        unsigned = [name for name in zones if name not in {*signed, BOGUS}]
        try:
            bed._start_knot(texts, signed)
            bed._start_unbound(resolver_port, dead_port, unsigned)
        except BaseException:
            bed.stop()
            raise
        return bed

    @classmethod
    @contextlib.contextmanager
    def running(
        cls, directory: Path, zones: Mapping[str, str], *, signed: Collection[str] = ()
    ) -> Iterator[Self]:
        """`start`, and `stop` in the end."""
        bed = cls.start(directory, zones, signed=signed)
        try:
            yield bed
        finally:
            bed.stop()

    def change(self, name: str, text: str) -> None:
        """Give an unsigned zone another text; the resolver knows it when the TTL of what it knew is over."""
        self._serial += 1
        self._write_zone(name, text)
        self._run_knot("knotc", "--blocking", "zone-reload", name)

    def stop(self) -> None:
        """End both, by their own process ids."""
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def _start_knot(self, texts: Mapping[str, str], signed: Collection[str]) -> None:
        directory = self.directory
        for name in ("zones", "run", "db"):
            (directory / name).mkdir(parents=True)
        config = directory / "knot.conf"
        lines = [
            _KNOT_CONF.format(
                directory=directory,
                port=self.authority_port,
                tsig_name=TSIG_NAME,
                tsig_secret=TSIG_SECRET,
            )
        ]
        lines += [_knot_zone(name, signed=name in signed or name in {".", BOGUS}) for name in (".", *texts)]
        config.write_text("".join(lines))
        delegations = [f"{DEAD}. NS ns.bed.invalid."]
        for name, text in texts.items():
            self._write_zone(name, text)
            delegations.append(f"{name}. NS ns.bed.invalid.")
            if name in signed:
                self._generate_key(name)
                delegations.append(_only_sha256(self._keymgr(name, "ds")))
        delegations.append(f"{BOGUS}. DS 12345 13 2 {'0' * 64}")
        self._write_zone(".", "\n".join(delegations))
        self._generate_key(".")
        (directory / "root.key").write_text(self._keymgr(".", "dnskey"))
        self._spawn("knotd", "-c", str(config))
        self._wait_for(self.authority_port, [".", *texts])

    def _start_unbound(self, port: int, dead_port: int, unsigned: Collection[str]) -> None:
        zones = {".": self.authority_port, DEAD: dead_port, **dict.fromkeys(unsigned, self.authority_port)}
        config = self.directory / "unbound.conf"
        opened = ["test", "invalid", "in-addr.arpa", *unsigned]
        opened += [f"{octet}.in-addr.arpa" for octet in ("127", "10", "2.0.192", "100.51.198", "113.0.203")]
        config.write_text(
            _UNBOUND_CONF.format(
                directory=self.directory,
                port=port,
                negative=NEGATIVE_TTL,
                local_zones="".join(
                    f'    local-zone: "{name}." nodefault\n' for name in dict.fromkeys(opened)
                ),
                stubs="".join(
                    _STUB.format(name=name.strip("."), port=stub_port) for name, stub_port in zones.items()
                ),
            )
        )
        self._spawn("unbound", "-d", "-c", str(config))
        self._wait_for(port, ["."])

    def _write_zone(self, name: str, text: str) -> None:
        top = _ZONE_TOP.format(origin=f"{name.strip('.')}.", serial=self._serial, negative=NEGATIVE_TTL)
        (self.directory / "zones" / _file_name(name)).write_text(f"{top}{text}\n")

    def _generate_key(self, name: str) -> None:
        self._keymgr(name, "generate", "algorithm=ecdsap256sha256", "ksk=yes", "zsk=yes")

    def _keymgr(self, name: str, *arguments: str) -> str:
        return self._run_knot("keymgr", name, *arguments)

    def _run_knot(self, tool: str, *arguments: str) -> str:
        program = shutil.which(tool, path=_SBIN)
        assert program is not None
        done = subprocess.run(
            [program, "-c", str(self.directory / "knot.conf"), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _spawn(self, program: str, *arguments: str) -> None:
        path = shutil.which(program, path=_SBIN)
        assert path is not None
        with self._log.open("ab") as log:
            process = subprocess.Popen([path, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._processes.append(process)

    def _wait_for(self, port: int, names: Collection[str]) -> None:
        """Until every zone's SOA is answered for; a closed port refuses at once, so that asking again is the event."""
        deadline = time.monotonic() + _START_S
        for name in names:
            query = dns.message.make_query(name, "SOA")
            while True:
                if self._processes[-1].poll() is not None:
                    raise AssertionError(f"it ended: {self._log.read_text()}")
                if time.monotonic() > deadline:
                    raise AssertionError(f"{name} is not answered for: {self._log.read_text()}")
                with contextlib.suppress(OSError, dns.exception.DNSException):
                    reply = dns.query.udp(query, "127.0.0.1", port=port, timeout=0.5)
                    if reply.rcode() == dns.rcode.NOERROR and reply.answer:
                        break
                time.sleep(0.01)


def _file_name(name: str) -> str:
    return f"{name.strip('.') or 'root'}.zone"


def _knot_zone(name: str, *, signed: bool) -> str:
    template = "    template: signed\n" if signed else ""
    acl = "" if name in {".", BOGUS} else "    acl: updates\n"
    return f'  - domain: "{name.strip(".")}."\n    file: "{_file_name(name)}"\n{template}{acl}'


def _only_sha256(records: str) -> str:
    """Digest type 2 of the DS records that keymgr offers (RFC 4509)."""
    (record,) = [line for line in records.splitlines() if " 13 2 " in line]
    return record


def _free_ports(count: int) -> list[int]:
    """Ports free for UDP and TCP; they stay reserved until all are found."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            tcp = stack.enter_context(socket.socket())
            tcp.bind(("127.0.0.1", 0))
            udp = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            with contextlib.suppress(OSError):
                udp.bind(tcp.getsockname())
                ports.append(tcp.getsockname()[1])
        return ports
