"""The store as others use it: policies that outlive us, and results counted as RFC 8460 §4.4 wants them."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta, timezone

import pytest
from sqlalchemy import text

from gateway.store import Store, StoreError
from gateway.store.results import FailureCount, PolicyResults
from gateway.tlspolicy.model import FailureType, PolicyType
from gateway.tlspolicy.mta_sts.shelf import PolicyShelf, ShelfError
from tests.store.databases import DAY, NOW, TIMEOUT_S, database, policy, postgresql, session, until

__all__ = ["database", "postgresql"]


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    store = Store.open(database, keep_results=timedelta(days=36_500))  # `NOW` is long ago
    yield store
    await store.close(TIMEOUT_S)


async def written(store: Store) -> None:
    """Wait until nothing waits."""
    await asyncio.to_thread(until, lambda: not store.writer.counts.waiting)


async def test_a_policy_outlives_the_process(database: str) -> None:
    first = Store.open(database)
    await first.policies.put(policy())
    await first.close(TIMEOUT_S)
    second = Store.open(database)
    assert await second.policies.get("example.com") == policy()
    assert await second.policies.get("example.org") is None
    await second.close(TIMEOUT_S)


async def test_a_policy_is_replaced_and_forgotten(store: Store) -> None:
    shelf: PolicyShelf = store.policies
    await shelf.put(policy())
    newer = policy(fetched=NOW + DAY, identifier="2")
    await shelf.put(newer)
    assert await shelf.get("example.com") == newer
    await shelf.drop("example.com", newer.expires - timedelta(seconds=1))  # another process renewed it
    assert await shelf.get("example.com") == newer
    await shelf.drop("example.com", newer.expires)
    await shelf.drop("example.com", newer.expires)
    assert await shelf.get("example.com") is None


async def test_an_older_copy_does_not_replace_a_newer_one(store: Store) -> None:
    newer = policy(fetched=NOW + DAY, identifier="2")
    await store.policies.put(newer)
    await store.policies.put(policy())
    assert await store.policies.get("example.com") == newer


async def test_the_soonest_to_expire_come_first(store: Store) -> None:
    await store.policies.put(policy("b.example", fetched=NOW + DAY))
    await store.policies.put(policy("a.example"))
    assert [one.domain for one in await store.policies.all()] == ["a.example", "b.example"]


@pytest.mark.parametrize("identifier", ["\x00", "\udc80"])
async def test_what_no_database_takes_is_a_shelf_error_or_kept_as_it_is(
    store: Store, identifier: str
) -> None:
    strange = policy(identifier=identifier)
    try:
        await store.policies.put(strange)
    except ShelfError:
        assert await store.policies.get("example.com") is None
    else:
        assert await store.policies.get("example.com") == strange


async def test_a_closed_store_is_a_shelf_error(database: str) -> None:
    store = Store.open(database)
    await store.close(TIMEOUT_S)
    with pytest.raises(ShelfError, match="closed"):
        await store.policies.get("example.com")


async def test_a_broken_store_is_a_shelf_error_and_a_store_error(database: str) -> None:
    store = Store.open(database)
    with store._engine.begin() as connection:
        connection.execute(text("DROP TABLE mta_sts_policies"))
        connection.execute(text("DROP TABLE tls_results"))
    with pytest.raises(ShelfError, match="mta_sts_policies"):
        await store.policies.get("example.com")
    with pytest.raises(StoreError, match="tls_results"):
        await store.sessions(NOW, NOW + DAY)
    await store.close(TIMEOUT_S)


async def test_sessions_are_counted_by_policy_and_by_kind_of_failure(store: Store) -> None:
    mismatch = FailureType.CERTIFICATE_HOST_MISMATCH
    for _ in range(3):
        store.record(session())
    for _ in range(2):
        store.record(session(failure=mismatch, receiving_ip="192.0.2.1"))
    store.record(session(failure=mismatch, receiving_ip="192.0.2.2"))
    store.record(session(policy_type=PolicyType.NONE, policy_string=(), mx_host=()))
    store.record(session(policy_domain="example.org"))
    await written(store)

    def failure(ip: str, sessions: int) -> FailureCount:
        return FailureCount(
            failure=mismatch,
            sessions=sessions,
            sending_mta_ip=None,
            receiving_mx_hostname="mx.example.com",
            receiving_mx_helo=None,
            receiving_ip=ip,
            reason=None,
        )

    found = await store.sessions(NOW, NOW + DAY, "example.com")
    assert found == [
        PolicyResults(
            policy_domain="example.com",
            policy_type=PolicyType.NONE,
            tlsa_domain=None,
            policy_string=(),
            mx_host=(),
            succeeded=1,
            failed=0,
            failures=(),
        ),
        PolicyResults(
            policy_domain="example.com",
            policy_type=PolicyType.STS,
            tlsa_domain=None,
            policy_string=("version: STSv1", "mode: enforce"),
            mx_host=("mx.example.com",),
            succeeded=3,
            failed=3,
            failures=(failure("192.0.2.1", 2), failure("192.0.2.2", 1)),
        ),
    ]
    assert await store.domains(NOW, NOW + DAY) == ["example.com", "example.org"]
    everything = await store.sessions(NOW, NOW + DAY)
    assert sum(one.succeeded + one.failed for one in everything) == 8


async def test_a_day_has_its_first_moment_and_not_its_last(store: Store) -> None:
    east = timezone(timedelta(hours=9))
    for at in (NOW - timedelta(microseconds=1), NOW.astimezone(east), NOW + DAY):
        store.record(session(at=at))
    await written(store)
    (found,) = await store.sessions(NOW, NOW + DAY)
    assert found.succeeded == 1


async def test_endless_words_of_a_peer_are_cut(store: Store) -> None:
    long = "x" * 100_000
    store.record(
        session(
            failure=FailureType.VALIDATION_FAILURE,
            policy_domain=long,
            policy_string=("version: STSv1", *("mx: " + "y" * 96,) * 1_000),
            mx_host=(long,),
            receiving_mx_helo=long,
            receiving_ip=long,
            reason=long,
        )
    )
    await written(store)
    assert store.writer.counts.dropped == 0
    (found,) = await store.sessions(NOW, NOW + DAY)
    assert len(found.policy_domain) < 300
    assert len(found.policy_string) == 82
    assert found.mx_host == ()
    assert len(found.failures[0].reason or "") == 500
