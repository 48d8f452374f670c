"""What outlives the process: MTA-STS policies and the results of TLS sessions, in SQLite or PostgreSQL.

Nothing here is on the mail path: reads are rare, writes are batched by a thread of their own, and a store that is down costs
reports, never mail. Whatever else is to be kept gets its table in `tables`, its migration in `migrations`, and goes through
the same writer.
"""

from gateway.store.errors import StoreError
from gateway.store.store import Store

__all__ = ["Store", "StoreError"]
