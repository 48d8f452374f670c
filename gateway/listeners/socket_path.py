"""A UNIX socket's name in the file system: who may have it, and when it goes.

Each socket is bound under a private name and moved to the public one: that sets mode and group before anybody can connect, and
takes the place of a dead process' socket in one step. Whatever unlinks a socket's name when it closes it, as libmilter does, knows
only the private one; with several workers the first to end would else take the socket from the others.
"""

import grp
import os
import socket
import stat
from pathlib import Path
from typing import Final

MAX_PATH_BYTES: Final = 107  # sun_path of Linux, without its final NUL


class SocketInUseError(OSError):
    """The path cannot be ours; the message says why, for the operator."""


class SocketPath:
    """One UNIX socket's public name and the private one it is bound under.

    Args:
        path: where the mail server is to find it.
        mode: who may connect.
        group: whose it is; None: the process' own.
        kind: `SOCK_STREAM` or `SOCK_DGRAM`.
        take_over: the living process that listens there is one of ours, whose place we take.

    Raises:
        SocketInUseError: a living process listens there, something else than a socket is there, or the path is too long.
    """

    def __init__(
        self,
        path: Path,
        mode: int,
        *,
        group: str | None = None,
        kind: socket.SocketKind = socket.SOCK_STREAM,
        take_over: bool = False,
    ) -> None:
        self.path: Final = path
        self.private: Final = path.with_name(f"{path.name}.{os.getpid()}")
        self.kind: Final = kind
        self._mode: Final = mode
        self._group: Final = group
        self._identity: tuple[int, int] | None = None
        if len(os.fsencode(self.private)) > MAX_PATH_BYTES:
            raise SocketInUseError(
                f"{path}: too long for a UNIX socket; leave room for a process id below 108 bytes"
            )
        _refuse_living(path, kind, take_over=take_over)
        self.private.unlink(missing_ok=True)

    def publish(self) -> None:
        """Give the socket that is bound under the private name its mode, its group and its public name.

        Raises:
            OSError: the group does not exist, or the process is not in it.
        """
        if self._group is not None:
            self._give_away(self._group)
        self.private.chmod(self._mode)
        status = self.private.stat()
        self._identity = status.st_dev, status.st_ino
        self.private.replace(self.path)

    def _give_away(self, group: str) -> None:
        try:
            os.chown(self.private, -1, grp.getgrnam(group).gr_gid)
        except (KeyError, ValueError):
            raise OSError(f"{self.path}: there is no group {group!r}; see /etc/group") from None
        except PermissionError:
            said = f"{self.path}: only a member may give it to the group {group!r}; put the gateway's user into it"
            raise OSError(said) from None

    def abandon(self) -> None:
        """Take the private name away, where it is not to be published."""
        self.private.unlink(missing_ok=True)

    def remove(self) -> None:
        """Take the public name away, unless another process' socket has it by now."""
        try:
            status = self.path.lstat()
        except FileNotFoundError:
            return
        if (status.st_dev, status.st_ino) == self._identity:
            self.path.unlink(missing_ok=True)


def bind_socket(path: SocketPath) -> socket.socket:
    """A socket under the private name, which nobody but this process' user can reach.

    Raises:
        OSError: its directory is not there, or may not be written.
    """
    sock = socket.socket(socket.AF_UNIX, path.kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    umask = os.umask(0o177)
    try:
        sock.bind(os.fspath(path.private))
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(umask)
    return sock


def _refuse_living(path: Path, kind: socket.SocketKind, *, take_over: bool) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise SocketInUseError(
            f"{path}: something is there that is not a socket; remove it or choose another path"
        )
    if take_over:
        return
    with socket.socket(socket.AF_UNIX, kind) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return  # its process is dead; `publish` takes its place
        except OSError as error:
            raise SocketInUseError(
                f"{path}: a socket is there that cannot be tried: {error.strerror}"
            ) from error
    raise SocketInUseError(f"{path}: another process is listening there")
