"""A real Postfix for tests: private directories, one loopback port, Maildirs, nothing shared with the host's own.

Several beds run side by side, and the host's /etc/postfix may be unconfigured: no bed reads it. What a bed delivers it
delivers to Maildirs below its own directory; mail for any other domain bounces inside it and never leaves the machine.

    with open_directory() as directory:
        bed = PostfixBed.start(directory, milters=["unix:" + str(directory / "milter.sock")])
        try:
            ...  # smtplib.SMTP("127.0.0.1", bed.port); bed.wait_for_message("alice")
        finally:
            bed.stop()
"""

import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self, TypeVar

import pytest

USERS: Final = ("alice", "bob", "postmaster")
"""Who has a mailbox in every local domain; anybody else is refused at RCPT with 550 5.1.1."""

_PROGRAMS: Final = Path("/usr/lib/postfix/sbin")  # Debian's daemon_directory
_QUEUES: Final = [
    "active",
    "bounce",
    "corrupt",
    "defer",
    "deferred",
    "flush",
    "hold",
    "incoming",
    "private",
    "saved",
    "trace",
]
_POLL_S: Final = 0.01  # a Maildir has no event of its own but its new file

# One line a service: no chroot, and flush, verify, virtual's kin and the rest as Debian has them.
_MASTER_CF: Final = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
virtual unix - n n - - virtual
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
{services}
"""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class HeldMessage:
    """A message in the hold queue, as Postfix would deliver it; line ends are LF there."""

    queue_id: str
    content: bytes


@contextmanager
def open_directory() -> Iterator[Path]:
    """A fresh directory that Postfix's unprivileged processes can enter, gone at the end.

    pytest's `tmp_path` will not do: its parent is closed to other users (0700), and Postfix drops root early.
    """
    directory = Path(tempfile.mkdtemp(prefix="postfix-bed-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        _run(["rm", "-rf", str(directory)])


@dataclass(slots=True)
class PostfixBed:
    """One running Postfix; make it with `start`, end it with `stop`.

    Attributes:
        directory: everything of this instance: `etc`, `queue`, `data`, `mail`, `maillog`.
        port: its smtpd, on 127.0.0.1.
        local_domains: the domains that it delivers for.
        prefix: a command that runs its master, which follows.
    """

    directory: Path
    port: int
    local_domains: tuple[str, ...]
    prefix: tuple[str, ...] = ()
    _master: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @classmethod
    def start(
        cls,
        directory: Path,
        *,
        milters: Iterable[str] = (),
        xclient: bool = False,
        local_domains: tuple[str, ...] = ("bed.test",),
        extra: Mapping[str, str] | None = None,
        services: str = "",
        prefix: Iterable[str] = (),
    ) -> Self:
        """Configure an instance below `directory` and wait until it greets.

        Args:
            directory: empty, or absent; every directory above it must let other users pass (`open_directory`).
            milters: as in `smtpd_milters`; `sendmail` submission is shown to them as well.
            xclient: whether 127.0.0.1 may use XCLIENT and XFORWARD.
            local_domains: each has the mailboxes of `USERS`.
            extra: main.cf parameters that win over the bed's own.
            services: further lines for master.cf.
            prefix: a command that runs the rest of its line, such as `unshare --net`.

        Skips the test, with the reason, where Postfix or the right to start it is missing.
        """
        _require_postfix()
        _require_passage(directory)
        bed = cls(directory, _free_port(), local_domains, tuple(prefix))
        bed._lay_out()
        parameters = bed._parameters(tuple(milters), xclient=xclient) | dict(extra or {})
        etc = directory / "etc"
        (etc / "main.cf").write_text("".join(f"{name} = {value}\n" for name, value in parameters.items()))
        (etc / "master.cf").write_text(_MASTER_CF.format(port=bed.port, services=services))
        (etc / "mailboxes").write_text(
            "".join(f"{user}@{domain} {domain}/{user}/\n" for domain in local_domains for user in USERS),
        )
        for written in etc.iterdir():
            # Postfix reads a file that changed a moment ago again and again, for 2 s, lest somebody be still writing.
            os.utime(written, (time.time() - 60,) * 2)
        bed.launch()
        return bed

    def launch(self) -> None:
        """Run the configured instance (again, after `stop`) and wait until it greets."""
        command = [
            *_privilege(),
            *self.prefix,
            str(_PROGRAMS / "master"),
            "-s",
            "-c",
            str(self.directory / "etc"),
        ]
        # A session of its own: Postfix's master kills its whole process group when it ends.
        self._master = subprocess.Popen(
            command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            wait_until(self._greets, f"Postfix to greet on port {self.port}", timeout_s=20)
        except AssertionError as error:
            self.stop()
            raise AssertionError(f"{error}; its log:\n{self.log()}") from None

    def stop(self) -> None:
        """End the instance, by the process id of its own master."""
        master, self._master = self._master, None
        if master is None:
            return
        pid = self._master_pid() or master.pid
        self._signal(signal.SIGTERM, pid)
        try:
            master.wait(10)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL, pid)
            master.wait(10)
        # Its processes share the listening socket and outlive their master by a moment.
        try:
            wait_until(lambda: _session_is_over(pid), "all of Postfix's processes to end", timeout_s=10)
        except AssertionError:
            self._signal(signal.SIGKILL, -pid)
            raise

    def mailbox(self, user: str) -> Path:
        """The Maildir of `user`, or of `user@domain`; without a domain, in the first local domain."""
        local_part, _, domain = user.partition("@")
        return self.directory / "mail" / (domain or self.local_domains[0]) / local_part

    def messages(self, user: str) -> list[bytes]:
        """What has been delivered to `user` so far, oldest first, with LF for line ends as Postfix stores it."""
        found = sorted((self.mailbox(user) / "new").glob("*"), key=lambda path: path.stat().st_mtime_ns)
        return [path.read_bytes() for path in found]

    def wait_for_message(self, user: str, timeout_s: float = 10.0) -> bytes:
        """Take the oldest message from the mailbox of `user`, as soon as there is one."""

        def take() -> bytes | None:
            found = sorted((self.mailbox(user) / "new").glob("*"), key=lambda path: path.stat().st_mtime_ns)
            if not found:
                return None
            content = found[0].read_bytes()
            found[0].unlink()
            return content

        return wait_until(take, f"a message for {user}", timeout_s=timeout_s, explain=self.log)

    def queue_ids(self, queue: str) -> list[str]:
        """The messages in one queue: `hold`, `deferred`, `active`, `incoming`."""
        listing = _run(
            ["find", str(self.directory / "queue" / queue), "-type", "f", "-perm", "/u+x", "-printf", r"%f\n"]
        )
        return sorted(listing.decode().split())

    def held_messages(self) -> list[HeldMessage]:
        """What the hold queue holds now; Postfix moves a message there before it answers the end of the data."""
        return [HeldMessage(queue_id, self._content(queue_id)) for queue_id in self.queue_ids("hold")]

    def submit(self, content: bytes, *, sender: str, recipient: str) -> None:
        """Hand in mail by Postfix's `sendmail` command, as a local program does; lines end with LF."""
        command = ["/usr/sbin/sendmail", "-C", str(self.directory / "etc"), "-i", "-f", sender, recipient]
        _run(command, stdin=content)

    def flush(self) -> None:
        """Try all deferred mail again, now."""
        _run(["postqueue", "-c", str(self.directory / "etc"), "-f"])

    def log(self) -> str:
        """All that this instance has logged."""
        path = self.directory / "maillog"
        return _run(["cat", str(path)]).decode("utf-8", "replace") if path.exists() else ""

    def wait_for_log(self, pattern: str, timeout_s: float = 10.0) -> re.Match[str]:
        """Wait until the log has a line with this regular expression in it."""
        return wait_until(
            lambda: re.search(pattern, self.log(), re.MULTILINE),
            f"{pattern!r} in the log",
            timeout_s=timeout_s,
            explain=self.log,
        )

    def smtpd_pids(self) -> list[int]:
        """The smtpd processes of this instance, for measuring."""
        if self._master is None:
            return []
        children = _run(["ps", "-o", "pid=,comm=", "--ppid", str(self._master_pid() or 0)]).decode()
        return [int(line.split()[0]) for line in children.splitlines() if line.split()[1] == "smtpd"]

    def _lay_out(self) -> None:
        """The directories with the owners and modes that `postfix set-permissions` would give them."""
        queue = self.directory / "queue"
        for name in ("etc", "queue", "queue/pid", "mail"):
            (self.directory / name).mkdir(parents=True, exist_ok=True, mode=0o755)
        postfix = ["install", "-d", "-o", "postfix"]
        _run([*postfix, "-m", "0700", str(self.directory / "data"), *(str(queue / name) for name in _QUEUES)])
        _run([*postfix, "-g", "postdrop", "-m", "1730", str(queue / "maildrop")])
        _run([*postfix, "-g", "postdrop", "-m", "2710", str(queue / "public")])
        owner = str(_mailbox_owner().pw_uid)
        _run(["chown", owner, str(self.directory / "mail")])

    def _parameters(self, milters: tuple[str, ...], *, xclient: bool) -> dict[str, str]:
        owner = _mailbox_owner()
        directory = str(self.directory)
        parameters = {
            "compatibility_level": "3.6",
            "config_directory": f"{directory}/etc",
            "queue_directory": f"{directory}/queue",
            "data_directory": f"{directory}/data",
            # Not /var/log: postlogd writes it, and a bed shares no syslog with the host.
            "maillog_file": f"{directory}/maillog",
            "maillog_file_prefixes": directory,
            "mail_owner": "postfix",
            "setgid_group": "postdrop",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "all",
            "myhostname": "mx.bed.test",
            "mydomain": "bed.test",
            "myorigin": self.local_domains[0],
            # Nobody is trusted by address: a gateway on loopback must not turn the world into "mynetworks".
            "mynetworks": "192.0.2.255/32",
            "mydestination": "",
            "alias_maps": "",
            "alias_database": "",
            "local_recipient_maps": "",
            "virtual_mailbox_domains": " ".join(self.local_domains),
            "virtual_mailbox_base": f"{directory}/mail",
            "virtual_mailbox_maps": f"texthash:{directory}/etc/mailboxes",
            "virtual_uid_maps": f"static:{owner.pw_uid}",
            "virtual_gid_maps": f"static:{owner.pw_gid}",
            "virtual_minimum_uid": "1",
            "virtual_mailbox_limit": "0",
            "message_size_limit": "104857600",
            "recipient_delimiter": "+",
            # Its default counts a client on loopback as local, and Postfix then completes and rewrites header fields.
            "local_header_rewrite_clients": "",
            "smtpd_relay_restrictions": "permit_mynetworks, reject_unauth_destination",
            "smtpd_recipient_restrictions": "reject_unlisted_recipient",
            # Hermetic: no DNS, no delivery to the world, no mail about errors.
            "smtpd_peername_lookup": "no",
            "smtp_dns_support_level": "disabled",
            "default_transport": "error:5.4.4 this Postfix is a test bed",
            "relay_transport": "error:5.4.4 this Postfix is a test bed",
            "notify_classes": "",
            # Tests make mistakes on purpose, many a second.
            "smtpd_error_sleep_time": "0",
            "smtpd_soft_error_limit": "10000",
            "smtpd_hard_error_limit": "10000",
            "smtpd_client_connection_count_limit": "0",
            "in_flow_delay": "0",
            # A gateway in front of it must be able to rely on: no NUL, only CRLF.CRLF ends the data.
            "message_reject_characters": r"\0",
            "smtputf8_enable": "yes",
            "strict_smtputf8": "no",
        }
        if _knows("smtpd_forbid_bare_newline"):  # 3.9, and Debian's 3.7 since its CVE-2023-51764 update
            parameters |= {
                "smtpd_forbid_bare_newline": "normalize",
                "smtpd_forbid_bare_newline_exclusions": "",
            }
        if xclient:
            parameters |= {
                "smtpd_authorized_xclient_hosts": "127.0.0.1",
                "smtpd_authorized_xforward_hosts": "127.0.0.1",
            }
        if milters:
            parameters |= {
                "smtpd_milters": ", ".join(milters),
                "non_smtpd_milters": "$smtpd_milters",
                "milter_default_action": "tempfail",
            }
        return parameters

    def _greets(self) -> bool:
        if self._master is not None and self._master.poll() is not None:
            raise AssertionError(f"Postfix ended with status {self._master.returncode}")
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as client:
                return client.recv(512).startswith(b"220 ")
        except ConnectionRefusedError:
            return False

    def _content(self, queue_id: str) -> bytes:
        return _run(["postcat", "-c", str(self.directory / "etc"), "-bhq", queue_id])

    def _master_pid(self) -> int | None:
        try:
            return int(_run(["cat", str(self.directory / "queue/pid/master.pid")]))
        except (subprocess.CalledProcessError, ValueError):  # it never came so far
            return None

    def _signal(self, number: signal.Signals, pid: int) -> None:
        command = [*_privilege(), "kill", f"-{number.name[3:]}", "--", str(pid)]
        subprocess.run(command, check=False, capture_output=True)


def wait_until(
    probe: Callable[[], _T | None],
    what: str,
    *,
    timeout_s: float = 10.0,
    explain: Callable[[], str] | None = None,
) -> _T:
    """Ask `probe` until it answers something true, and return that; fail the test after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s for {what}" + (f"\n{explain()}" if explain else ""))
        time.sleep(_POLL_S)


def _session_is_over(leader: int) -> bool:
    listing = subprocess.run(["ps", "-o", "stat=", "--sid", str(leader)], check=False, capture_output=True)
    return all(state.startswith(b"Z") for state in listing.stdout.split())  # dead; init has yet to take note


def _privilege() -> list[str]:
    return [] if os.geteuid() == 0 else ["sudo", "-n"]


def _run(command: list[str], *, stdin: bytes | None = None) -> bytes:
    """Run a program with root's rights; what it prints on standard error is in the failure's text."""
    done = subprocess.run(
        [*_privilege(), *command], input=stdin, capture_output=True, check=False, timeout=30
    )
    if done.returncode:
        raise subprocess.CalledProcessError(
            done.returncode,
            " ".join(command) + ": " + done.stderr.decode("utf-8", "replace"),
            done.stdout,
            done.stderr,
        )
    return done.stdout


def _require_postfix() -> None:
    if not (_PROGRAMS / "master").exists():
        pytest.skip(f"no Postfix here: {_PROGRAMS}/master is missing (Debian package: postfix)")
    if os.geteuid() == 0:
        return
    if (
        shutil.which("sudo") is None
        or subprocess.run(["sudo", "-n", "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("Postfix's master must be started by root, and `sudo -n` does not work here")


def _require_passage(directory: Path) -> None:
    for above in directory.resolve().parents:
        if above.exists() and not above.stat().st_mode & stat.S_IXOTH:
            raise ValueError(f"{above} is closed to other users, Postfix's among them: use open_directory()")


def _mailbox_owner() -> pwd.struct_passwd:
    """Who owns delivered mail: ourselves, so that a test may read it; root may not, and reads everything anyway."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.getuid())


def _knows(parameter: str) -> bool:
    # postconf wants a main.cf only without -d
    done = subprocess.run(["postconf", "-d", parameter], check=False, capture_output=True, text=True)
    return done.stdout.startswith(f"{parameter} =")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
