"""*Outbound TLS*: is mail that leaves protected as its receivers ask, by MTA-STS (RFC 8461) or DANE (RFC 7672)?"""

from collections.abc import Iterable
from typing import Final

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.dashboards.panels import (
    ANY_IS_BAD,
    ANY_IS_WORTH_A_LOOK,
    BLUE,
    GREEN,
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
from grafana.dashboards.queries import HAS_PROBLEM, grouped, increase, rate, select, share, some, until

_QUARTER: Final = 6
_LOW: Final = 5
_TLS: Final = "gateway_tls_sessions_total"
_RELAYED: Final = "gateway_relay_sessions_total"
_DECISIONS: Final = "gateway_tls_decisions_total"
_FETCH_FAILED: Final = 'change="fetch-failed"'
_POLICIES: Final = "gateway_mta_sts_policies_total"


def build() -> Dashboard:
    """The dashboard."""
    board = Board(Page.OUTBOUND_TLS, "Is what leaves protected as its receivers ask, and does it arrive?")
    board.row("Is it safe?", _safety())
    board.row("Decisions", _decisions())
    board.row("MTA-STS", _mta_sts())
    board.row("The relay: deliveries of ours", _relay())
    board.row("TLS as spoken", _tls())
    return board.build()


def _safety() -> Iterable[Panel]:
    yield number(
        "Downgrades seen",
        "In the chosen time: mail that was, or would have been, less protected than asked for. `injection`: somebody sits in between. "
        "`tls-missing`: such mail waits in the queue, it is not sent in clear. `gateway tls DOMAIN` says what holds for a domain.",
        Query(expr=increase("gateway_tls_downgrades_total", by="kind"), legend="{{kind}}"),
        Look(unit=Unit.COUNT, width=12, height=_LOW, limits=ANY_IS_BAD, none="none"),
    )
    yield number(
        "First policy to end",
        "Until an enforced MTA-STS policy runs out. They are renewed long before; short and falling means that its host has not "
        "answered for days. After that its mail is sent as if there were none.",
        Query(expr=until("gateway_mta_sts_nearest_expiry_timestamp_seconds")),
        Look(
            unit=Unit.SECONDS,
            width=_QUARTER,
            height=_LOW,
            limits=Limits(warn=86_400, bad=3_600, low_is_bad=True),
            none="no enforced policy known",
        ),
    )
    yield number(
        "Policies not renewed",
        "Enforced policies with less than a quarter of their life left. See *Fetches that failed* for the cause.",
        Query(expr=grouped("sum", select("gateway_mta_sts_overdue_policies"))),
        Look(
            unit=Unit.COUNT,
            width=_QUARTER,
            height=_LOW,
            limits=ANY_IS_WORTH_A_LOOK,
            none="no policy known",
        ),
    )


def _decisions() -> Iterable[Panel]:
    yield lines(
        "What holds for the domains asked",
        "By level. `may` is no demand at all; `secure` is MTA-STS, `dane-only` is DANE, `refuse` is no delivery. A sudden fall of "
        "`secure` or `dane-only` for `may`: our resolver has stopped to validate, or an attack; look at *Problems* beside.",
        [Query(expr=rate(_DECISIONS, by="level"), legend="{{level}}")],
        Look(
            stacked=True,
            colors={"secure": GREEN, "dane-only": "dark-green", "dane": "dark-green", "refuse": RED},
        ),
    )
    yield lines(
        "Problems with decisions",
        "What was wrong with a domain's MX, MTA-STS or TLSA records. Each is explained in docs/problems.md. `…dns-…` of many domains at "
        "once is our resolver.",
        [Query(expr=rate("gateway_tls_decision_problems_total", by="problem"), legend="{{problem}}")],
        Look(none="none"),
    )
    yield number(
        "Decisions from memory",
        "Part of the questions that needed no look-up. Low on a busy server: the DNS has very short TTLs, or workers are restarted often.",
        Query(expr=share(_DECISIONS, 'cached="yes"')),
        Look(unit=Unit.SHARE, width=8, none="none yet"),
    )
    yield lines(
        "Postfix's questions",
        "What our Postfix was told at the socketmap door. `temp`, `timeout` and `failed` let mail wait in its queue: look at the DNS first.",
        [
            Query(
                expr=rate("gateway_tls_policy_answers_total", by="outcome,level"),
                legend="{{outcome}} {{level}}",
            )
        ],
        Look(width=16, none="[tls_policy] is off, or nothing was asked"),
    )


def _mta_sts() -> Iterable[Panel]:
    yield lines(
        "Policies in memory",
        "By mode. Of several processes the one that knows most. A fall to 0 without a restart is wrong: is there a `[store]`, and can "
        "it be read?",
        [
            Query(
                expr=grouped("max", select("gateway_mta_sts_known_policies"), "mode"),
                legend="{{mode}}",
            )
        ],
        Look(unit=Unit.COUNT, width=8, colors={"enforce": GREEN, "testing": BLUE}, none="none known"),
    )
    yield lines(
        "Look-ups",
        "How domains' policies were found. Mostly from memory on a busy server; most domains have none.",
        [Query(expr=rate("gateway_mta_sts_lookups_total", by="outcome"), legend="{{outcome}}")],
        Look(width=8),
    )
    yield lines(
        "Policies that came, went or changed",
        "`weakened` and `expired` are counted as downgrades. `mx-changed` is a domain's own move. `fetch-failed` with a known policy "
        "does no harm before that one ends.",
        [Query(expr=rate(_POLICIES, by="change"), legend="{{change}}")],
        Look(width=8),
    )
    yield rows(
        "Fetches that failed in the chosen time",
        "By cause (docs/problems.md). One or two are other people's web servers. Many of one kind: can this host reach the web on port "
        "443, and are its certificate authorities (ca-certificates) up to date?",
        Query(expr=some(increase(_POLICIES, _FETCH_FAILED, by="problem")), legend="fetches"),
        Look(unit=Unit.COUNT, height=7, none="none failed"),
    )
    yield lines(
        "Fetches that failed",
        "The same over time: a block is an outage of ours, single ones are not.",
        [Query(expr=rate(_POLICIES, _FETCH_FAILED, by="problem"), legend="{{problem}}")],
        Look(height=7, none="none failed"),
    )


def _relay() -> Iterable[Panel]:
    yield lines(
        "What remote servers said",
        "`delivered`: they have it. `deferred`: our Postfix keeps it and tries again; all of it deferred: is port 25 open to the outside? "
        "`refused`: the sender gets it back.",
        [Query(expr=rate("gateway_relay_deliveries_total", by="outcome"), legend="{{outcome}}")],
        Look(
            unit=Unit.MESSAGES_PER_SECOND,
            colors={"delivered": GREEN, "deferred": BLUE, "refused": RED},
            stacked=True,
            none="[outbound] is off, or nothing left",
        ),
    )
    yield lines(
        "Sessions by demand",
        "What TLS each session had to have (demand) and what it had. `none` under a demand of `pkix` or `dane` never carries a message.",
        [Query(expr=rate(_RELAYED, by="demand,tls"), legend="{{demand}}: {{tls}}")],
        Look(none="no session"),
    )
    yield rows(
        "What was wrong with sessions in the chosen time",
        "By demand, problem (docs/problems.md) and failure. A certificate problem under `pkix` or `dane` keeps that domain's mail in the "
        "queue until they mend it; TLSRPT tells them.",
        Query(expr=some(increase(_RELAYED, HAS_PROBLEM, by="demand,problem,failure")), legend="sessions"),
        Look(unit=Unit.COUNT, none="nothing"),
    )
    yield lines(
        "Problems of sessions",
        "The same over time. Many servers at once: our network, our clock, or our certificate authorities.",
        [Query(expr=rate(_RELAYED, HAS_PROBLEM, by="problem"), legend="{{problem}}")],
        Look(none="nothing"),
    )


def _tls() -> Iterable[Panel]:
    for direction, whose in (("out", "remote mail servers"), ("in", "clients")):
        yield lines(
            f"TLS with {whose}",
            "Handshakes by version and cipher. TLSv1.2 that grows is somebody with old software; below that nothing is spoken.",
            [
                Query(
                    expr=rate(_TLS, f'direction="{direction}"', by="version,cipher"),
                    legend="{{version}} {{cipher}}",
                )
            ],
            Look(none="no TLS yet"),
        )
