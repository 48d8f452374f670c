"""The milter's UNIX socket in the file system: who may have its name, and when the name goes.

libmilter binds and, at its end, unlinks the path that it was told; with several workers the first to end would take the
socket from the others. So it gets a private name, and we move the socket to the public one: that also sets the mode before
anybody can connect, and takes the place of a dead process' socket in one step.
"""

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

    Raises:
        SocketInUseError: a living process listens there, something else than a socket is there, or the path is too long.
    """

    def __init__(self, path: Path, mode: int) -> None:
        self.path: Final = path
        self.private: Final = path.with_name(f"{path.name}.{os.getpid()}")
        self._mode: Final = mode
        self._identity: tuple[int, int] | None = None
        if len(os.fsencode(self.private)) > MAX_PATH_BYTES:
            raise SocketInUseError(
                f"{path}: too long for a UNIX socket; leave room for a process id below 108 bytes"
            )
        _refuse_living(path)
        self.private.unlink(missing_ok=True)

    def publish(self) -> None:
        """Give the socket that is bound under the private name its mode and its public name."""
        self.private.chmod(self._mode)
        status = self.private.stat()
        self._identity = status.st_dev, status.st_ino
        self.private.replace(self.path)

    def remove(self) -> None:
        """Take the public name away, unless another process' socket has it by now."""
        try:
            status = self.path.lstat()
        except FileNotFoundError:
            return
        if (status.st_dev, status.st_ino) == self._identity:
            self.path.unlink(missing_ok=True)


def _refuse_living(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise SocketInUseError(
            f"{path}: something is there that is not a socket; remove it or choose another path"
        )
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return  # its process is dead; `publish` takes its place
        except OSError as error:
            raise SocketInUseError(
                f"{path}: a socket is there that cannot be tried: {error.strerror}"
            ) from error
    raise SocketInUseError(f"{path}: another process is listening there")
