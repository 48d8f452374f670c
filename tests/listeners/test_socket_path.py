import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.listeners.socket_path import SocketInUseError, SocketPath
from tests.live.postfix import open_directory


@pytest.fixture
def directory() -> Iterator[Path]:
    with open_directory() as directory:  # short: a UNIX socket's path has 107 bytes
        yield directory


def listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def test_a_socket_is_published_with_its_mode_and_taken_away(directory: Path) -> None:
    path = directory / "milter.sock"
    ours = SocketPath(path, 0o640)
    with listen(ours.private):
        ours.publish()
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert sorted(directory.iterdir()) == [path]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    ours.remove()
    ours.remove()
    assert list(directory.iterdir()) == []


def test_a_dead_process_socket_is_taken_over(directory: Path) -> None:
    path = directory / "milter.sock"
    listen(path).close()
    ours = SocketPath(path, 0o660)
    assert path.is_socket(), "it stays until ours takes its place in one step"
    with listen(ours.private):
        ours.publish()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_what_a_dead_process_of_our_number_left_is_in_nobodys_way(directory: Path) -> None:
    path = directory / "milter.sock"
    listen(path.with_name(f"milter.sock.{os.getpid()}")).close()
    with listen(SocketPath(path, 0o660).private):
        pass


def test_a_living_process_keeps_its_socket(directory: Path) -> None:
    path = directory / "milter.sock"
    with listen(path), pytest.raises(SocketInUseError, match="another process is listening there"):
        SocketPath(path, 0o660)
    assert path.is_socket()


def test_what_is_no_socket_is_left_alone(directory: Path) -> None:
    path = directory / "milter.sock"
    path.write_text("somebody's data")
    with pytest.raises(SocketInUseError, match="not a socket"):
        SocketPath(path, 0o660)
    assert path.read_text() == "somebody's data"


def test_a_path_without_room_is_refused(directory: Path) -> None:
    with pytest.raises(SocketInUseError, match="too long"):
        SocketPath(directory / ("x" * 100), 0o660)


def test_another_process_socket_is_not_taken_away(directory: Path) -> None:
    path = directory / "milter.sock"
    ours = SocketPath(path, 0o660)
    with listen(ours.private):
        ours.publish()
        path.unlink()
        with listen(path):
            ours.remove()
            assert path.is_socket()
