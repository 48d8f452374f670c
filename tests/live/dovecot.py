"""A real Dovecot for tests, as far as it knows passwords: private directories, one UNIX socket, no port at all.

It is what Postfix asks about log-ins (`smtpd_sasl_type = dovecot`). Users and passwords stand in a file of the bed's own.

    with DovecotBed.running(directory, socket=postfix.directory / "queue/private/auth", passwords={"alice": "secret"}):
        ...
"""

import base64
import hmac
import json
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import pytest

from tests.live.postfix import _privilege, _session_is_over, wait_until

MECHANISMS: Final = (
    "plain",
    "login",
    "cram-md5",
    "scram-sha-1",
    "scram-sha-256",
    "oauthbearer",
    "xoauth2",
)
TOKEN_SECRET: Final = b"what the token's issuer and Dovecot share"

_CONF: Final = """\
base_dir = {directory}/run
state_dir = {directory}/state
log_path = {directory}/log
protocols =
ssl = no
mail_location = maildir:{directory}/mail/%n
auth_mechanisms = {mechanisms}
auth_failure_delay = 0
auth_username_format = %Lu
passdb {{
  driver = oauth2
  mechanisms = oauthbearer xoauth2
  args = {directory}/oauth2.conf
}}
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%n {directory}/passwords
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home={directory}/mail/%n
}}
service auth {{
  unix_listener {socket} {{
    mode = 0666
  }}
}}
"""

_OAUTH2_CONF: Final = """\
introspection_mode = local
local_validation_key_dict = fs:posix:prefix={directory}/keys/
username_attribute = sub
"""


@dataclass(slots=True)
class DovecotBed:
    """One running Dovecot; make it with `running`."""

    directory: Path
    socket: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @classmethod
    @contextmanager
    def running(cls, directory: Path, *, socket: Path, passwords: Mapping[str, str]) -> Iterator[Self]:
        """Configure an instance below `directory` (absent yet) and wait until it can be asked.

        Skips the test, with the reason, where Dovecot is missing.
        """
        if shutil.which("dovecot", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
            pytest.skip("no Dovecot here (Debian package: dovecot-core)")
        try:
            pwd.getpwnam("dovenull")
        except KeyError:
            pytest.skip("Dovecot's own users are missing (Debian package: dovecot-core makes them)")
        directory.mkdir()
        bed = cls(directory, socket)
        conf = _CONF.format(directory=directory, mechanisms=" ".join(MECHANISMS), socket=socket)
        (directory / "dovecot.conf").write_text(conf)
        (directory / "passwords").write_text(
            "".join(f"{user}:{{PLAIN}}{word}\n" for user, word in passwords.items())
        )
        (directory / "oauth2.conf").write_text(_OAUTH2_CONF.format(directory=directory))
        key = directory / "keys/default/HS256/one"
        key.parent.mkdir(parents=True)
        key.write_bytes(base64.b64encode(TOKEN_SECRET))
        bed.launch()
        try:
            yield bed
        finally:
            bed.stop()

    @staticmethod
    def make_token(user: str, **claims: object) -> str:
        """A JSON Web Token (RFC 7519) with which Dovecot lets this user in for an hour."""
        header = {"alg": "HS256", "typ": "JWT", "kid": "one"}
        now = int(time.time())
        body = {"sub": user, "iat": now - 1, "exp": now + 3_600, **claims}
        signed = b".".join(_b64url(json.dumps(part).encode()) for part in (header, body))
        return (signed + b"." + _b64url(hmac.digest(TOKEN_SECRET, signed, "sha256"))).decode()

    def launch(self) -> None:
        """Run it (again, after `stop`) and wait for its socket."""
        with (self.directory / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(
                [*_privilege(), "/usr/sbin/dovecot", "-F", "-c", str(self.directory / "dovecot.conf")],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        wait_until(self._is_there, "Dovecot's socket", explain=self.log)

    def stop(self) -> None:
        """End it, by the process id of its own master."""
        process, self._process = self._process, None
        if process is None:
            return
        _signal(process.pid)
        process.wait(10)
        # Its auth process outlives it for as long as Postfix is connected.
        _signal(-process.pid)
        wait_until(lambda: _session_is_over(process.pid), "all of Dovecot's processes to end")

    def log(self) -> str:
        """All that it has logged."""
        files = [self.directory / "log", self.directory / "stderr"]
        return "".join(path.read_text(errors="replace") for path in files if path.exists())

    def _is_there(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(f"Dovecot ended with status {self._process.returncode}:\n{self.log()}")
        listing = subprocess.run([*_privilege(), "test", "-S", str(self.socket)], check=False)
        return listing.returncode == 0


def _b64url(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def _signal(pid: int) -> None:
    """SIGTERM to one process, or to the process group that is given as a negative number."""
    command = [*_privilege(), "kill", f"-{signal.SIGTERM.name[3:]}", "--", str(pid)]
    subprocess.run(command, check=False, capture_output=True)
