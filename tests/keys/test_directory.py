import os
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.auth.dkim.key import KeyType
from gateway.auth.dkim.key_table import load_key_table
from gateway.keys.directory import KeyDirectory
from gateway.keys.errors import KeyDirectoryError
from gateway.keys.making import Order, make_keys
from gateway.keys.model import ManagedKey

NOW = datetime(2026, 11, 24, 6, tzinfo=UTC)


@pytest.fixture
def directory(tmp_path: Path) -> KeyDirectory:
    return KeyDirectory(tmp_path / "keys")


def make(directory: KeyDirectory, *algorithms: KeyType, selector: str | None = None) -> list[ManagedKey]:
    order = Order(
        domain="example.net", algorithms=algorithms or (KeyType.ED25519,), bits=2048, selector=selector
    )
    with directory.locked():
        return list(make_keys(directory, order, now=NOW))


def test_an_absent_directory_has_no_keys(directory: KeyDirectory) -> None:
    assert directory.read() == ()
    assert directory.orphans() == ()


def test_everything_is_for_its_owner_alone(directory: KeyDirectory) -> None:
    make(directory, *KeyType)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.path.iterdir()}
    assert modes == {
        "keys.toml": 0o600,
        "lock": 0o600,
        "20261124-rsa._domainkey.example.net.pem": 0o600,
        "20261124-ed25519._domainkey.example.net.pem": 0o600,
    }
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_belongs_to_the_directorys_owner(directory: KeyDirectory) -> None:
    directory.path.mkdir()
    os.chown(directory.path, 12345, 12345)
    make(directory)
    assert {path.stat().st_uid for path in directory.path.iterdir()} == {12345}


def test_the_private_key_is_that_of_the_record(directory: KeyDirectory) -> None:
    for key in make(directory, *KeyType):
        assert key.key_record.key == directory.load(key).public_key()


def test_names_tell_the_day_and_are_never_taken_twice(directory: KeyDirectory) -> None:
    (first,) = make(directory)
    assert first.selector == "20261124-ed25519"
    directory.write(())  # as if the state had been lost: its file must not be overwritten
    with pytest.raises(KeyDirectoryError, match="is there already"):
        make(directory, selector=first.selector)
    (second,) = make(directory)
    assert second.selector == "20261124b-ed25519"
    assert directory.orphans() == (directory.path_of(first),)


def test_a_selector_of_ones_own_choice(directory: KeyDirectory) -> None:
    assert [key.selector for key in make(directory, *KeyType, selector="s1")] == ["s1-rsa", "s1-ed25519"]
    (key,) = make(KeyDirectory(directory.path.with_name("other")), KeyType.RSA, selector="s1")
    assert key.selector == "s1"


def test_a_second_key_of_a_kind_is_refused_while_one_waits(directory: KeyDirectory) -> None:
    make(directory, KeyType.RSA)
    make(directory, KeyType.ED25519)  # of another kind: beside it
    with pytest.raises(KeyDirectoryError, match="only waiting for its turn"):
        make(directory, KeyType.RSA)


def test_two_at_once_are_not_let_in(directory: KeyDirectory) -> None:
    program = (
        "import pathlib, sys; from gateway.keys.directory import KeyDirectory\n"
        "with KeyDirectory(pathlib.Path(sys.argv[1])).locked(): print('in')"
    )

    def second() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, directory.path], capture_output=True, text=True, check=False
        )

    with directory.locked():
        assert "another `gateway keys` is at work here" in second().stderr
    assert second().stdout == "in\n"


def test_an_interrupted_write_leaves_the_old_file_and_does_not_hinder_the_next(
    directory: KeyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = make(directory)
    before = directory.state_path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _no_space)
        with pytest.raises(KeyDirectoryError, match="cannot be written: No space left"):
            directory.write(())
    assert directory.state_path.read_bytes() == before
    directory.write(keys)
    assert directory.read() == tuple(keys)


def _no_space(_descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_key_file_that_is_another_ones_is_refused(directory: KeyDirectory) -> None:
    (key,) = make(directory)
    (other,) = make(KeyDirectory(directory.path.with_name("other")))
    (directory.path.with_name("other") / other.file_name).replace(directory.path_of(key))
    with pytest.raises(KeyDirectoryError, match=r"is not the key that keys\.toml has under this name"):
        directory.load(key)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is missing; restore it from a backup, or begin with a new key"),
        (b"", "no readable private key"),
        (b"\xff" * 100, "no readable private key"),
    ],
)
def test_a_bad_key_file_names_itself(directory: KeyDirectory, content: bytes | None, said: str) -> None:
    (key,) = make(directory)
    path = directory.path_of(key)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KeyDirectoryError) as caught:
        directory.load(key)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_a_state_that_cannot_be_read_names_itself(directory: KeyDirectory) -> None:
    make(directory)
    directory.state_path.write_bytes(b"\xff")
    with pytest.raises(KeyDirectoryError, match=r"keys\.toml: is not in UTF-8"):
        directory.read()
    directory.state_path.unlink()
    directory.state_path.mkdir()
    with pytest.raises(KeyDirectoryError, match=r"keys\.toml: cannot be read: Is a directory"):
        directory.read()


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("")
    with pytest.raises(KeyDirectoryError, match="cannot be made"), KeyDirectory(tmp_path / "keys").locked():
        pass


def test_no_key_signs_before_it_is_active(directory: KeyDirectory) -> None:
    from gateway.keys.signing import signing_entries  # noqa: PLC0415 - only here

    make(directory)
    assert load_key_table(signing_entries(directory)).keys == ()
