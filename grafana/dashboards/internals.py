"""*Internals*: the gateway itself. DNS, workers, memory, the event loop, the store, certificates."""

from collections.abc import Iterable
from typing import Final

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.dashboards.panels import (
    ANY_IS_BAD,
    ANY_IS_WORTH_A_LOOK,
    DAYS_LEFT,
    ORANGE,
    RED,
    Board,
    Limits,
    Look,
    Page,
    Panel,
    Query,
    Unit,
    lines,
    number,
    rows,
)
from grafana.dashboards.queries import (
    PER_RATE_INTERVAL,
    grouped,
    increase,
    quantile,
    rate,
    select,
    share,
    until,
)

_QUERIES: Final = "gateway_dns_queries_total"
_LAG: Final = "gateway_event_loop_lag_seconds"
_LOW: Final = 5


def build() -> Dashboard:
    """The dashboard."""
    board = Board(Page.INTERNALS, "Is the gateway itself well?")
    board.row("Who runs", _service())
    board.row("DNS", _dns())
    board.row("Workers", _workers())
    board.row("Store and log", _store())
    board.row("What ends by itself", _ends())
    return board.build()


def _service() -> Iterable[Panel]:
    yield rows(
        "Versions",
        "Two versions for longer than an update takes: one gateway was not restarted.",
        Query(
            expr=grouped("count", select("gateway_build_info"), "instance,version,python"), legend="gateways"
        ),
        Look(unit=Unit.COUNT, width=8, height=_LOW),
    )
    yield number(
        "Runs since",
        "The oldest process of each gateway. Short, and nobody restarted it: look in the journal for the reason.",
        Query(
            expr=f"time() - {grouped('min', select('process_start_time_seconds'), 'instance')}",
            legend="{{instance}}",
        ),
        Look(unit=Unit.SECONDS, width=4, height=_LOW),
    )
    yield number(
        "Workers",
        "Processes that do the work. Fewer than `workers` says: `worker.lost` in the log says why.",
        Query(
            expr=grouped("sum", select("gateway_workers"), "instance"),
            legend="{{instance}}",
        ),
        Look(unit=Unit.COUNT, width=4, height=_LOW),
    )
    yield number(
        "Config in force for",
        "Time since the config was read with success. An edit that is younger has not been taken: `systemctl reload gateway`.",
        Query(
            expr=f"time() - {grouped('min', select('gateway_config_last_reload_success_timestamp_seconds'))}"
        ),
        Look(unit=Unit.SECONDS, width=4, height=_LOW),
    )
    yield number(
        "Reloads refused",
        "In the chosen time, counted once by each process. The old config stands; `gateway config check` names every fault.",
        Query(expr=increase("gateway_config_reload_total", 'outcome="refused"')),
        Look(unit=Unit.COUNT, width=4, height=_LOW, limits=ANY_IS_WORTH_A_LOOK),
    )


def _dns() -> Iterable[Panel]:
    yield lines(
        "Questions by outcome",
        "Put to the resolver. `nxdomain` and `nodata` are answers. `timeout` and `refused` are the resolver, `servfail` is mostly "
        "one broken zone; `budget` is a message that asked for too much (hostile, or an endless SPF record).",
        [Query(expr=rate(_QUERIES, 'cached="no"', by="outcome"), legend="{{outcome}}")],
        Look(
            stacked=True,
            colors={"timeout": RED, "refused": RED, "servfail": ORANGE, "malformed": ORANGE},
        ),
    )
    yield lines(
        "Questions by type",
        "All that the checks ask, answers from memory included.",
        [Query(expr=rate(_QUERIES, by="type"), legend="{{type}}")],
        Look(stacked=True),
    )
    yield lines(
        "Time of an answer",
        "From the resolver; p50 is its cache, p99 the far end of the world. p50 above a few milliseconds: the resolver is not on this "
        "host, or not well.",
        [
            Query(
                expr=quantile(fraction, "gateway_dns_query_duration_seconds", by="type"),
                legend=f"{{{{type}}}} p{fraction * 100:.0f}",
            )
            for fraction in (0.5, 0.99)
        ],
        Look(unit=Unit.SECONDS, limits=Limits(warn=1, bad=4)),
    )
    yield lines(
        "Answers from memory",
        "Part of the questions that did not go to the resolver. It falls after each restart, for minutes.",
        [Query(expr=share(_QUERIES, 'cached="yes"'), legend="from memory")],
        Look(unit=Unit.SHARE),
    )


def _workers() -> Iterable[Panel]:
    yield lines(
        "How late the event loop is",
        "p99 by process. A worker does one thing at a time: above 100 ms all its sessions wait. Which other program takes the CPU? "
        "If none does, more `workers`, up to one per core.",
        [
            Query(expr=quantile(0.99, _LAG, by="instance,worker"), legend="{{instance}} {{worker}} p99"),
        ],
        Look(unit=Unit.SECONDS, limits=Limits(warn=0.1, bad=1)),
    )
    yield lines(
        "CPU",
        "Cores in use, all processes of each gateway. Near its number of workers, it is at its limit.",
        [Query(expr=rate("process_cpu_seconds_total", by="instance"), legend="{{instance}}")],
        Look(unit=Unit.COUNT),
    )
    yield lines(
        "Memory",
        "Resident, all processes; what they share counts for each. It grows with open sessions and stays flat with the size of messages. "
        "Growth over days without more mail is a leak: please report it.",
        [
            Query(
                expr=grouped("sum", select("process_resident_memory_bytes"), "instance"),
                legend="{{instance}} resident",
            ),
            Query(
                expr=grouped("sum", select("process_virtual_memory_bytes"), "instance"),
                legend="{{instance}} address space",
            ),
        ],
        Look(unit=Unit.BYTES, width=6),
    )
    yield lines(
        "Message bytes held",
        "Content of messages on their way. Near `max_bytes_in_flight` new ones get 452: many large messages, or a slow mail server "
        "behind us.",
        [Query(expr=grouped("sum", select("gateway_bytes_in_flight"), "instance"), legend="{{instance}}")],
        Look(unit=Unit.BYTES, width=6),
    )
    yield lines(
        "File descriptors",
        "Part of the limit that the process with most of them uses. Near 100 %: clients are refused. Raise `LimitNOFILE` in the unit, or "
        "lower `max_sessions`.",
        [
            Query(
                expr=(
                    f"{grouped('max', select('process_open_fds'), 'instance')} / "
                    f"{grouped('min', select('process_max_fds'), 'instance')}"
                ),
                legend="{{instance}}",
            )
        ],
        Look(unit=Unit.SHARE, width=6, limits=Limits(warn=0.7, bad=0.9)),
    )
    yield lines(
        "Workers there, wanted and lost",
        "A lost one ended unasked, was begun again, and its sessions were cut off. Out of memory (`dmesg`), or a crash: the log names the "
        "signal.",
        [
            Query(expr=grouped("sum", select("gateway_workers")), legend="there"),
            Query(expr=grouped("sum", select("gateway_workers_configured")), legend="wanted"),
            Query(
                expr=grouped(
                    "sum", f"increase({select('gateway_worker_losses_total')}[{PER_RATE_INTERVAL}])"
                ),
                legend="lost",
            ),
        ],
        Look(unit=Unit.COUNT, width=6, colors={"lost": RED}),
    )


def _store() -> Iterable[Panel]:
    yield lines(
        "Rows waiting for the store",
        "They are written in batches, some seconds after they came. A line that only climbs: disk or database do not keep up.",
        [Query(expr=grouped("sum", select("gateway_store_rows_waiting"), "instance"), legend="{{instance}}")],
        Look(unit=Unit.COUNT, width=8, limits=Limits(warn=1_000, bad=10_000), none="no store"),
    )
    yield lines(
        "Rows written and dropped",
        "Dropped rows will be missing from traces and reports; mail does not wait for the store.",
        [
            Query(expr=rate("gateway_store_rows_total", by="table,outcome"), legend="{{table}} {{outcome}}"),
            Query(expr=rate("gateway_store_failures_total"), legend="attempts that failed"),
        ],
        Look(
            width=8,
            colors={"attempts that failed": ORANGE},
            none="no store",
        ),
    )
    yield lines(
        "Lines of the log",
        "By level. `error` should be 0; `warning` is something that an operator can mend. `journalctl -u gateway -p warning`.",
        [
            Query(expr=rate("gateway_log_events_total", by="level"), legend="{{level}}"),
            Query(expr=rate("gateway_log_tracebacks_total"), legend="with a traceback"),
        ],
        Look(
            width=8,
            colors={"error": RED, "critical": RED, "warning": ORANGE, "with a traceback": RED},
        ),
    )


def _ends() -> Iterable[Panel]:
    yield number(
        "Certificates: time left",
        "Of each door's certificate, with its chain. Renewed on disk but short here: `systemctl reload gateway` takes it up.",
        Query(
            expr=until("gateway_certificate_not_after_timestamp_seconds", by="instance,listener"),
            legend="{{instance}} {{listener}}",
        ),
        Look(unit=Unit.SECONDS, limits=DAYS_LEFT, none="no certificate"),
    )
    yield number(
        "Bugs",
        "Tracebacks in the chosen time. Please report them, with the traceback from the log.",
        Query(expr=increase("gateway_log_tracebacks_total")),
        Look(unit=Unit.COUNT, limits=ANY_IS_BAD),
    )
