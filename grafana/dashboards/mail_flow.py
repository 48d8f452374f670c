"""*Mail flow*: the one to hang on the wall. Ten seconds say whether mail flows, and where it is stuck if not."""

from collections.abc import Iterable
from typing import Final

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.dashboards.panels import (
    ANY_IS_BAD,
    ANY_IS_WORTH_A_LOOK,
    DISPOSITIONS,
    GREEN,
    GREY,
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
from grafana.dashboards.queries import LISTENER, grouped, increase, quantile, rate, select, share, some

_SMALL: Final = 4
_LOW: Final = 5
_MESSAGES: Final = "gateway_messages_total"
_SECONDS: Final = "gateway_message_duration_seconds"


def build() -> Dashboard:
    """The dashboard."""
    board = Board(
        Page.MAIL_FLOW,
        "Does mail flow? If not: is it us, the mail server behind us, or the DNS?",
        has_listeners=True,
    )
    board.row("Does mail flow?", (*_service(), *_health()))
    board.row("What becomes of it", _verdicts())
    board.row("How long it takes", _latency())
    board.row("Who comes", _clients())
    board.row("The mail server behind us", _downstream())
    return board.build()


def _service() -> Iterable[Panel]:
    yield number(
        "Gateways that answer",
        "Below 100 %: Prometheus gets no answer from a gateway. Look at `systemctl status gateway` and its log; if it runs, at the "
        "network between Prometheus and its http listener.",
        Query(expr=f"{grouped('sum', select('up'))} / {grouped('count', select('up'))}"),
        Look(
            unit=Unit.SHARE,
            width=_SMALL,
            height=_LOW,
            limits=Limits(warn=1, bad=0.5, low_is_bad=True),
            none="nothing is scraped",
        ),
    )
    yield number(
        "Ready",
        "As `/readyz` says. `downstream`: the mail server behind us could not be used within the last half minute. `dns`: ten questions in "
        "a row without an answer. `listeners`: it is being stopped. While it is not ready, a load balancer should send mail elsewhere.",
        Query(expr=grouped("min", select("gateway_ready"), "check"), legend="{{check}}"),
        Look(
            unit=Unit.COUNT,
            width=8,
            height=_LOW,
            limits=Limits(bad=1, low_is_bad=True),
            words={0: ("no", RED), 1: ("yes", GREEN)},
            none="not known",
        ),
    )
    yield number(
        "Messages",
        "Messages judged. 0 in the middle of a working day: try `swaks --server` from outside. If that is refused at once, look at "
        "*Sessions by their end*; if nobody even connects, at firewall and MX record.",
        Query(expr=rate(_MESSAGES, LISTENER)),
        Look(unit=Unit.MESSAGES_PER_SECOND, width=_SMALL, height=_LOW),
    )
    yield number(
        "Refused",
        "Part of the messages that a rule rejects. A sudden rise: look which rule below; one new rule, or one large sender whose "
        "SPF or DKIM broke, is the usual cause.",
        Query(expr=share(_MESSAGES, 'disposition="reject"', LISTENER)),
        Look(unit=Unit.SHARE, width=_SMALL, height=_LOW, limits=Limits(warn=0.3, bad=0.7)),
    )
    yield number(
        "Deferred",
        "Part of the messages that senders are asked to bring again. Above a few percent: the DNS does not answer (*Internals*), or "
        "the mail server behind us does not (below). Nothing is lost yet; senders try for days.",
        Query(expr=share(_MESSAGES, 'disposition="defer"', LISTENER)),
        Look(unit=Unit.SHARE, width=_SMALL, height=_LOW, limits=Limits(warn=0.05, bad=0.25)),
    )


def _health() -> Iterable[Panel]:
    yield number(
        "p99 of a message",
        "From the end of the data to our reply; 1 of 100 waits longer. Seconds: DNS or the mail server behind us is slow, see *Where "
        "the time goes*.",
        Query(expr=quantile(0.99, _SECONDS, LISTENER)),
        Look(unit=Unit.SECONDS, width=_SMALL, height=_LOW, limits=Limits(warn=5, bad=20)),
    )
    yield number(
        "Downstream failures",
        "Times a minute that the mail server behind us could not be used. Senders get 4xx and try again. Is it running; does it "
        "listen where `downstream` points?",
        Query(expr=f"60 * {rate('gateway_downstream_failures_total')}"),
        Look(unit=Unit.COUNT, width=_SMALL, height=_LOW, limits=ANY_IS_WORTH_A_LOOK, none="none"),
    )
    yield number(
        "DNS without answer",
        "Part of the DNS questions that timed out or were refused. Above a few percent: look at the resolver in `[dns] servers`. "
        "(servfail is mostly somebody else's broken zone.)",
        Query(expr=share("gateway_dns_queries_total", 'outcome=~"timeout|refused"', 'cached="no"')),
        Look(
            unit=Unit.SHARE,
            width=_SMALL,
            height=_LOW,
            limits=Limits(warn=0.02, bad=0.2),
            none="none",
            page=Page.INTERNALS,
        ),
    )
    yield number(
        "Rows waiting for the store",
        "Traces and reports that are not written yet. A number that only grows: the disk or the database does not keep up. Mail does "
        "not wait for it, but rows will be dropped.",
        Query(expr=grouped("sum", select("gateway_store_rows_waiting"))),
        Look(
            unit=Unit.COUNT,
            width=_SMALL,
            height=_LOW,
            limits=Limits(warn=1_000, bad=10_000),
            none="no store",
            page=Page.INTERNALS,
        ),
    )
    yield number(
        "Config",
        "*refused*: the files on disk have a fault, and what was in force before is so still. `gateway config check` names it.",
        Query(expr=grouped("min", select("gateway_config_last_reload_successful"))),
        Look(
            unit=Unit.COUNT,
            width=_SMALL,
            height=_LOW,
            limits=Limits(bad=1, low_is_bad=True),
            words={0: ("refused", RED), 1: ("in force", GREEN)},
            page=Page.INTERNALS,
        ),
    )
    yield number(
        "Bugs",
        "Messages in the chosen time that met a bug of ours: they were deferred with 451, unless `[policy] on_error` says otherwise. "
        "Each has a traceback in the log (`message.failed`): please report it.",
        Query(expr=increase("gateway_internal_errors_total")),
        Look(unit=Unit.COUNT, width=_SMALL, height=_LOW, limits=ANY_IS_BAD, page=Page.INTERNALS),
    )


def _verdicts() -> Iterable[Panel]:
    yield lines(
        "Messages by what became of them",
        "The shape of a normal day is what to know by heart. All lines at 0: no mail comes. Only `defer`: see *Downstream failures* "
        "and *DNS without answer* above.",
        [Query(expr=rate(_MESSAGES, LISTENER, by="disposition"), legend="{{disposition}}")],
        Look(unit=Unit.MESSAGES_PER_SECOND, colors=DISPOSITIONS, stacked=True),
    )
    yield lines(
        "Refused, by rule",
        "Rejected, deferred and quarantined messages by the rule that said so. A rule that suddenly leads: read it in the rules' file, "
        "then find one of its messages under *Traces*.",
        [
            Query(
                expr=rate(_MESSAGES, LISTENER, 'disposition!="accept"', by="disposition,rule"),
                legend="{{disposition}} {{rule}}",
            )
        ],
        Look(unit=Unit.MESSAGES_PER_SECOND, page=Page.AUTHENTICATION),
    )
    yield lines(
        "Refused before the message",
        "Senders (mail) and recipients (rcpt) that a rule refused before any content was sent. A rise at rcpt is address guessing, or "
        "a recipient list that is out of date.",
        [
            Query(
                expr=rate("gateway_early_refusals_total", LISTENER, by="stage,disposition,rule"),
                legend="{{stage}} {{disposition}} {{rule}}",
            )
        ],
        Look(unit=Unit.PER_SECOND),
    )
    yield rows(
        "Rules taken in the chosen time",
        "How many messages each rule decided. Only rules that were taken are listed: one that is missing for weeks may be superfluous, "
        "or stand behind one that takes all of its messages.",
        Query(expr=some(increase(_MESSAGES, LISTENER, by="listener,rule,disposition")), legend="messages"),
        Look(unit=Unit.COUNT),
    )
    yield lines(
        "Would be refused, if the rules were not a monitor",
        "With the shipped rules `monitor` nothing is refused: this is what `default` would do. Find these messages under *Traces* before "
        "you switch. Empty once you have.",
        [
            Query(
                expr=rate("gateway_monitored_messages_total", by="intended,rule"),
                legend="{{intended}} {{rule}}",
            )
        ],
        Look(
            unit=Unit.MESSAGES_PER_SECOND, width=8, none="the rules are no monitor, or would refuse nothing"
        ),
    )
    yield rows(
        "Where the shadow rules differ",
        "Messages in the chosen time with which `[policy] shadow` would have done something else. Look at each line that would refuse more "
        "under *Traces* before you make the shadow the rules.",
        Query(
            expr=some(
                increase(
                    "gateway_shadow_messages_total",
                    by="live_rule,live_disposition,shadow_rule,shadow_disposition",
                )
            ),
            legend="messages",
        ),
        Look(unit=Unit.COUNT, width=8, none="no shadow rules, or no difference"),
    )
    yield lines(
        "Bytes",
        "Content judged (in) and taken by the next mail server (out). Out far below in: it is refused, or the next server does not "
        "take it.",
        [
            Query(
                expr=rate("gateway_message_bytes_total", LISTENER, by="listener,direction"),
                legend="{{listener}} {{direction}}",
            )
        ],
        Look(unit=Unit.BYTES_PER_SECOND, width=8),
    )


def _latency() -> Iterable[Panel]:
    changed = f"changes({select(_MESSAGES, LISTENER)}[1m]) > 0"
    yield lines(
        "Time of a message",
        "From the end of the data to our reply, by door. Dots are single messages; each leads to its trace. p50 high: everything is slow, "
        "look at *Internals*. p99 alone: a few slow DNS servers, mostly not yours.",
        [
            Query(
                expr=quantile(0.5, _SECONDS, LISTENER, by="listener"),
                legend="{{listener}} p50",
                exemplars=True,
            ),
            Query(
                expr=quantile(0.99, _SECONDS, LISTENER, by="listener"),
                legend="{{listener}} p99",
                exemplars=True,
            ),
        ],
        Look(unit=Unit.SECONDS, limits=Limits(warn=5, bad=20)),
    )
    yield lines(
        "Where the time goes",
        "p99 of what a message waits for: an answer of the DNS, and a reply of the mail server behind us. Whichever stands out is the one "
        "to look at.",
        [
            Query(expr=quantile(0.99, "gateway_dns_query_duration_seconds"), legend="a DNS question"),
            Query(
                expr=quantile(0.99, "gateway_downstream_duration_seconds", by="command"),
                legend="reply to {{command}}",
            ),
        ],
        Look(unit=Unit.SECONDS, page=Page.INTERNALS),
    )
    yield lines(
        "Size of a message",
        "Half are smaller than p50. A p99 at the limit of `max_message_bytes` means that larger ones are refused.",
        [
            Query(expr=quantile(0.5, "gateway_message_size_bytes"), legend="p50"),
            Query(expr=quantile(0.99, "gateway_message_size_bytes"), legend="p99"),
        ],
        Look(unit=Unit.BYTES),
    )
    yield lines(
        "Time since the last message",
        "Seconds since a message came by each door. Longer than ever at this time of day: try it yourself from outside.",
        [
            Query(
                expr=f"time() - max by (listener) (max_over_time(timestamp({changed})[1h:]))",
                legend="{{listener}}",
            )
        ],
        Look(unit=Unit.SECONDS, none="no message in an hour"),
    )


def _clients() -> Iterable[Panel]:
    yield lines(
        "Open sessions",
        "Clients connected now. A line that climbs and stays: slow or silent clients (see *timeout* beside), or a mail server behind us "
        "that keeps all of them waiting. At `max_sessions` new ones get 421.",
        [
            Query(
                expr=grouped("sum", select("gateway_sessions_open", LISTENER), "listener"),
                legend="{{listener}}",
            )
        ],
        Look(unit=Unit.COUNT, stacked=True),
    )
    yield lines(
        "Sessions by their end",
        "`quit` is good, `client-closed` is common. `downstream-down`: the mail server behind us. `internal`: a bug. `bad-proxy-header`: "
        "the load balancer does not send what it should. `refused`: too many sessions.",
        [
            Query(
                expr=rate("gateway_sessions_total", LISTENER, by="listener,end"),
                legend="{{listener}} {{end}}",
            )
        ],
        Look(),
    )
    yield lines(
        "Commands refused",
        "Our 4xx and 5xx replies by command. 530 and 535 at AUTH are password guessing; many 503 are a broken client; 452 is a budget "
        "that is full; 451 is DNS, the mail server behind us, or a bug.",
        [
            Query(
                expr=rate("gateway_commands_total", LISTENER, 'code=~"[45].."', by="verb,code"),
                legend="{{verb}} {{code}}",
            )
        ],
        Look(),
    )
    yield lines(
        "Log-ins",
        "By outcome. `refused` in great numbers: somebody guesses passwords; `barred` says that we already slow them down. `unavailable`: "
        "the mail server's own password service fails, look at its log.",
        [
            Query(
                expr=rate("gateway_logins_total", LISTENER, by="mechanism,outcome"),
                legend="{{mechanism}} {{outcome}}",
            )
        ],
        Look(colors={"barred": GREY}, none="nobody logged in"),
    )


def _downstream() -> Iterable[Panel]:
    yield lines(
        "Why it could not be used",
        "`connect`: is it running, is the address right? `timeout`: overloaded. `closing` and `lost`: it restarts, or has a limit on "
        "connections. `refused`: it does not take XCLIENT from us. Senders get 4xx in each case.",
        [Query(expr=rate("gateway_downstream_failures_total", by="kind"), legend="{{kind}}")],
        Look(width=8, limits=ANY_IS_WORTH_A_LOOK, none="none"),
    )
    yield lines(
        "What it refuses",
        "Its own 4xx and 5xx; they are passed on to the sender word by word. 550 at rcpt: no such user. 4xx at message: its disk, its "
        "filter or its queue; look at its log.",
        [
            Query(
                expr=rate("gateway_downstream_replies_total", 'code=~"[45].."', by="command,code"),
                legend="{{command}} {{code}}",
            )
        ],
        Look(width=8, none="nothing"),
    )
    yield lines(
        "How long it takes to reply",
        "p50 by command. `message` is the time until it says that it has the message; it should be far below a second.",
        [
            Query(
                expr=quantile(0.5, "gateway_downstream_duration_seconds", by="command"),
                legend="{{command}}",
            )
        ],
        Look(width=8, unit=Unit.SECONDS),
    )
