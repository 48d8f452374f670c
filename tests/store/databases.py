"""Both kinds of database, for tests that must hold on each: `database` is an empty one's URL."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.tlspolicy.model import FailureType, PolicyType, TlsSession
from gateway.tlspolicy.mta_sts.shelf import StoredPolicy
from tests.live.postgresql import PostgresBed

NOW = datetime(2026, 3, 14, 12, 0, 0, 123456, tzinfo=UTC)
DAY = timedelta(days=1)
TIMEOUT_S = 15.0


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgresBed]:
    with PostgresBed.running() as bed:
        yield bed


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.live)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "gateway.db")
    bed: PostgresBed = request.getfixturevalue("postgresql")
    return bed.new_database()


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"


def session(*, at: datetime = NOW, failure: FailureType | None = None, **more: object) -> TlsSession:
    given = {
        "at": at,
        "policy_domain": "example.com",
        "policy_type": PolicyType.STS,
        "policy_string": ("version: STSv1", "mode: enforce"),
        "mx_host": ("mx.example.com",),
        "failure": failure,
        "receiving_mx_hostname": "mx.example.com",
        **more,
    }
    return TlsSession(**given)  # type: ignore[arg-type] # a test's own words


def policy(domain: str = "example.com", *, fetched: datetime = NOW, identifier: str = "1") -> StoredPolicy:
    return StoredPolicy(
        domain=domain,
        identifier=identifier,
        text="version: STSv1\r\nmode: enforce\r\nmx: mx.example.com\r\nmax_age: 86400\r\n",
        fetched=fetched,
        expires=fetched + DAY,
    )


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread or process does."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)
