"""What outlives the process: MTA-STS policies and the results of TLS sessions, in SQLite or PostgreSQL.

Nothing here is on the mail path: reads are rare, writes are batched by a task of their own, and a store that is down costs
reports, never mail.
"""
