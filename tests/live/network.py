"""Where a test's internet stands: in a network of its own, where port 25 is free, or else on the host's loopback.

Postfix finds mail servers at port 25 and its resolver at port 53, and neither can be told otherwise; on the host these are
taken, or not ours to take. Linux gives root a network namespace with a loopback of its own, all ports free, that nobody
else sees and that is gone with the last program in it. Threads enter it one by one, so that a test needs no other process:

    network = private_network()
    network.within(lambda: subprocess.Popen([...]))  # a program that lives there
    network.connect("127.0.0.1", 25)                 # a socket that lives there and is used from anywhere
"""

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

_CLONE_NEWNET: Final = 0x40000000  # <sched.h>
_SIOCSIFFLAGS: Final = 0x8914  # <linux/sockios.h>
_IFF_UP_RUNNING: Final = 0x41  # <net/if.h>

_T = TypeVar("_T")


class NetworkUnavailableError(Exception):
    """There is no private network here; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Loopback addresses, and the ports at which the world listens there.

    Attributes:
        smtp_port: of every remote mail server.
        https_port: of every policy host.
        dns_port: of the resolver, at 127.0.0.1.
        is_private: the ports are the real ones: 25, 443, 53.
    """

    smtp_port: int
    https_port: int
    dns_port: int
    _namespace: int | None = None

    @property
    def is_private(self) -> bool:
        return self._namespace is not None

    def within(self, act: Callable[[], _T]) -> _T:
        """Do it there: what it starts stays there, what it opens belongs there."""
        if self._namespace is None:
            return act()
        with ThreadPoolExecutor(1, initializer=_enter, initargs=(self._namespace,)) as thread:
            return thread.submit(act).result()

    def connect(self, address: str, port: int, timeout_s: float = 30.0) -> socket.socket:
        return self.within(lambda: socket.create_connection((address, port), timeout_s))

    def listen(self, address: str, port: int) -> socket.socket:
        return self.within(lambda: socket.create_server((address, port), backlog=128))

    def free_port(self) -> int:
        return self.within(_free_port)


@contextlib.contextmanager
def host_network() -> Iterator[Network]:
    """The host's loopback: high ports, nothing that needs a right."""
    yield Network(smtp_port=_free_port(), https_port=_free_port(), dns_port=_free_port())


@contextlib.contextmanager
def private_network() -> Iterator[Network]:
    """A network of our own.

    Raises:
        NetworkUnavailableError: it cannot be had.
    """
    if os.geteuid() != 0:
        raise NetworkUnavailableError("a network namespace needs root")
    with ThreadPoolExecutor(1) as thread:
        namespace = thread.submit(_make).result()
    try:
        yield Network(smtp_port=25, https_port=443, dns_port=53, _namespace=namespace)
    finally:
        os.close(namespace)


def resolving_by(directory: Path) -> list[str]:
    """A command that runs the rest of its line with 127.0.0.1, port 53, for its resolver, whatever the host's is."""
    written = directory / "resolv.conf"
    # trust-ad: glibc takes the AD bit away without it, and DANE is off.
    written.write_text("nameserver 127.0.0.1\noptions trust-ad timeout:2 attempts:2\n")
    script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(written)]


def _make() -> int:
    """Leave the host's network with this thread, and come to one where loopback is up."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        raise NetworkUnavailableError(f"no network namespace: {os.strerror(ctypes.get_errno())}")
    with socket.socket(type=socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP_RUNNING))
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        port = int(probe.getsockname()[1])
        datagrams.bind(("127.0.0.1", port))
        return port
