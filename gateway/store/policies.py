"""MTA-STS policies on disk (RFC 8461 §5.1): a restart behind an attacker must not forget what a domain demands."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import datetime
from typing import Final, TypeVar

from sqlalchemy import Engine, RowMapping, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from gateway.store.engine import explain
from gateway.store.tables import MTA_STS_POLICIES
from gateway.tlspolicy.mta_sts.shelf import ShelfError, StoredPolicy

MAX_POLICIES: Final = 100_000

_T = TypeVar("_T")
_columns: Final = MTA_STS_POLICIES.c


class StoredPolicies:
    """A `PolicyShelf` on the store. Each call waits for the database in a thread of `executor`, never on the loop."""

    def __init__(self, engine: Engine, executor: Executor) -> None:
        self._engine = engine
        self._executor = executor

    async def get(self, domain: str) -> StoredPolicy | None:
        """See `PolicyShelf`."""
        return await self._call(lambda: self._get(domain))

    async def put(self, policy: StoredPolicy) -> None:
        """Keep it. One that was fetched later, by another node perhaps, stays in its place."""
        await self._call(lambda: self._put(policy))

    async def drop(self, domain: str, now: datetime) -> None:
        """See `PolicyShelf`."""
        await self._call(lambda: self._drop(domain, now))

    async def all(self) -> list[StoredPolicy]:
        """See `PolicyShelf`."""
        return await self._call(self._all)

    async def _call(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except SQLAlchemyError as error:
            raise ShelfError(str(explain(error))) from error
        except (UnicodeEncodeError, ValueError) as error:
            raise ShelfError(f"cannot be stored: {error}") from error
        except RuntimeError as error:  # the executor takes nothing more
            raise ShelfError("the store is closed") from error

    def _get(self, domain: str) -> StoredPolicy | None:
        with self._engine.connect() as connection:
            found = connection.execute(select(MTA_STS_POLICIES).where(_columns.domain == domain))
            row = found.mappings().one_or_none()
        return None if row is None else _policy(row)

    def _put(self, policy: StoredPolicy) -> None:
        changed = {
            "identifier": policy.identifier,
            "policy": policy.text,
            "fetched": policy.fetched,
            "expires": policy.expires,
        }
        # The two dialects spell it alike, but only each one's own `insert` has it.
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        statement = dialect.insert(MTA_STS_POLICIES).values(domain=policy.domain, **changed)
        statement = statement.on_conflict_do_update(
            index_elements=[_columns.domain], set_=changed, where=_columns.fetched <= policy.fetched
        )
        with self._engine.begin() as connection:
            connection.execute(statement)

    def _drop(self, domain: str, now: datetime) -> None:
        expired = delete(MTA_STS_POLICIES).where(_columns.domain == domain, _columns.expires <= now)
        with self._engine.begin() as connection:
            connection.execute(expired)

    def _all(self) -> list[StoredPolicy]:
        query = select(MTA_STS_POLICIES).order_by(_columns.expires).limit(MAX_POLICIES)
        with self._engine.connect() as connection:
            return [_policy(row) for row in connection.execute(query).mappings()]


def _policy(row: RowMapping) -> StoredPolicy:
    return StoredPolicy(
        domain=row["domain"],
        identifier=row["identifier"],
        text=row["policy"],
        fetched=row["fetched"],
        expires=row["expires"],
    )
