"""*Reports*: what we will tell others about their mail. Today: the TLS results that wait for it."""

from collections.abc import Iterable
from typing import Final

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.dashboards.panels import (
    ANY_IS_BAD,
    ANY_IS_WORTH_A_LOOK,
    GREEN,
    RED,
    Board,
    Look,
    Page,
    Panel,
    Query,
    Unit,
    lines,
    note,
    number,
)
from grafana.dashboards.queries import increase, rate

_ROWS: Final = "gateway_store_rows_total"

_TODAY: Final = """\
**Today** results of outbound TLS sessions are kept in the store: of our relay, and of Postfix where it reports them to us
(`[tls_policy] tlsrpt_socket`). Nothing is sent yet.

**To follow** with the sending of reports: DMARC aggregate reports (RFC 9990) and TLSRPT reports (RFC 8460) by day and outcome,
and what others report about our own domains. Until then there is nothing to be shown of them, and this page shows nothing.
"""


def build() -> Dashboard:
    """The dashboard."""
    board = Board(Page.REPORTS, "Is what we are to report being collected?")
    board.row("What is collected", _collected())
    board.row("Whether it is kept", _kept())
    return board.build()


def _collected() -> Iterable[Panel]:
    yield note("What there is", "What this page can show today, and what not.", _TODAY, width=12, height=8)
    yield lines(
        "Postfix's reports of TLS sessions",
        "`refused`: what came was no report, or more than we take; is it Postfix 3.10 or newer that writes to the socket? No line at all: "
        "`smtp_tlsrpt_enable` is off in Postfix.",
        [Query(expr=rate("gateway_tlsrpt_datagrams_total", by="outcome"), legend="{{outcome}}")],
        Look(colors={"taken": GREEN, "refused": RED}, none="none came"),
    )


def _kept() -> Iterable[Panel]:
    yield lines(
        "Rows for the store",
        "`written` is good. `dropped`: the store did not keep up, and what was dropped will be missing from reports and traces.",
        [Query(expr=rate(_ROWS, by="table,outcome"), legend="{{table}} {{outcome}}")],
        Look(none="no store", page=Page.INTERNALS),
    )
    yield number(
        "Rows lost in the chosen time",
        "Dropped because too many waited; `traces` go before `tls_results`. Look at *Times the store could not be written* and at the disk.",
        Query(expr=increase(_ROWS, 'outcome="dropped"', by="table"), legend="{{table}}"),
        Look(unit=Unit.COUNT, width=6, limits=ANY_IS_BAD, none="none"),
    )
    yield number(
        "Times the store could not be written",
        "It is tried again, nothing is lost at once. Is the disk full, is PostgreSQL up? The log says why (`store.failed`).",
        Query(expr=increase("gateway_store_failures_total")),
        Look(unit=Unit.COUNT, width=6, limits=ANY_IS_WORTH_A_LOOK, none="no store"),
    )
