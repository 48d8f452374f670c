"""The store's tables as this release uses them. `migrations` makes them; a test holds the two against each other.

Moments are UTC; a list of lines is JSON text, so that a person with `sqlite3` or `psql` can read every column.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)

MAX_DOMAIN_CHARACTERS: Final = 253  # RFC 1035 §2.3.4, as text


class Moment(TypeDecorator[datetime]):
    """A UTC time: `timestamptz` in PostgreSQL; text in SQLite, which knows no zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database. ValueError for a time without a zone: nobody could say when that was."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the database."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Lines(TypeDecorator[tuple[str, ...]]):
    """Several lines of text as a JSON list."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Sequence[str] | None, dialect: Dialect) -> str | None:
        """To the database."""
        del dialect
        return None if value is None else json.dumps(list(value), ensure_ascii=False)

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[str, ...] | None:
        """From the database."""
        del dialect
        return None if value is None else tuple(json.loads(value))


METADATA: Final = MetaData()
_Id = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER is SQLite's own row number

MTA_STS_POLICIES: Final = Table(
    "mta_sts_policies",
    METADATA,
    Column("domain", String(MAX_DOMAIN_CHARACTERS), primary_key=True),
    Column("identifier", String(32), nullable=False),  # RFC 8461 §3.1: at most 32
    Column("policy", Text, nullable=False),
    Column("fetched", Moment, nullable=False),
    Column("expires", Moment, nullable=False),
    Index("mta_sts_policies_expires", "expires"),
)

TLS_RESULTS: Final = Table(
    "tls_results",
    METADATA,
    Column("id", _Id, primary_key=True),
    Column("at", Moment, nullable=False),
    Column("policy_domain", String(MAX_DOMAIN_CHARACTERS), nullable=False),
    Column("policy_type", String(20), nullable=False),
    Column("tlsa_domain", String(MAX_DOMAIN_CHARACTERS)),
    Column("policy_string", Lines, nullable=False),
    Column("mx_host", Lines, nullable=False),
    Column("failure", String(40)),
    Column("sending_mta_ip", String(45)),
    Column("receiving_mx_hostname", String(255)),
    Column("receiving_mx_helo", String(255)),
    Column("receiving_ip", String(45)),
    Column("reason", Text),
    Column("delivery", String(20), nullable=False),
    Index("tls_results_at", "at"),
    Index("tls_results_domain", "policy_domain", "at"),
)

TRACES: Final = Table(
    "traces",
    METADATA,
    Column("key", _Id, primary_key=True, autoincrement=False),
    Column("newest", Moment, nullable=False),
    Column("count", Integer, nullable=False),
    Column("lines", Text, nullable=False),
)
"""What traces are found by, of some that were written together: each a line of text, in JSON.

Each trace has a key, and keys are given in their order; `key` is that of the last line, `newest` the time of the latest.
"""

TRACE_DOCUMENTS: Final = Table(
    "trace_documents",
    METADATA,
    Column("key", _Id, primary_key=True, autoincrement=False),
    Column("documents", LargeBinary, nullable=False),
)
"""The whole of the same traces, one in each line of a text that is compressed by zlib: to a tenth.

Apart, so that what they are found by can be looked through without them.
"""

TRACE_RING: Final = Table(
    "trace_ring",
    METADATA,
    Column("name", String(20), primary_key=True),
    Column("last", BigInteger, nullable=False),
)
"""One row, `traces`: the last key that was given. Whoever takes keys holds it until they are written, so they come in order."""
