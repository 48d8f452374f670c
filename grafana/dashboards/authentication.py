"""*Authentication*: what SPF, DKIM, DMARC and ARC find, and what we sign ourselves."""

from collections.abc import Iterable
from typing import Final

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.dashboards.panels import (
    GREEN,
    GREY,
    ORANGE,
    STATUSES,
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
from grafana.dashboards.queries import HAS_PROBLEM, grouped, increase, rate, select, share, some

_RESULTS: Final = "gateway_auth_results_total"
_POLICY: Final = "gateway_dmarc_policy_total"
_THIRD: Final = 8


def build() -> Dashboard:
    """The dashboard."""
    board = Board(Page.AUTHENTICATION, "Is mail from whom it says it is, and how do we know?")
    board.row("Results of the checks", _results())
    board.row("DMARC", _dmarc())
    board.row("DKIM", _dkim())
    board.row("SPF, ARC and the address", _others())
    board.row("What we sign", _signing())
    return board.build()


def _course(title: str, description: str, method: str, width: int) -> Panel:
    return lines(
        title,
        f"{description} The causes of all that is no pass are in *Why a check did not pass*.",
        [Query(expr=rate(_RESULTS, f'method="{method}"', by="status"), legend="{{status}}")],
        Look(stacked=True, colors=STATUSES, width=width),
    )


def _results() -> Iterable[Panel]:
    for method, name in (("spf", "SPF"), ("dkim", "DKIM"), ("dmarc", "DMARC")):
        yield number(
            f"{name} passes",
            f"Part of the {name} results that are `pass`. Every site has its own normal; a fall within an hour is a large sender whose "
            "records broke, a flood of forgeries, or our DNS.",
            Query(expr=share(_RESULTS, 'status="pass"', f'method="{method}"')),
            Look(unit=Unit.SHARE, width=6, height=5),
        )
    yield number(
        "Checks without an answer",
        "Part of the results that are `temperror`: the DNS did not answer. Above a few percent it is our resolver (*Internals*), "
        "below it is somebody else's.",
        Query(expr=share(_RESULTS, 'status="temperror"')),
        Look(
            unit=Unit.SHARE,
            width=6,
            height=5,
            limits=Limits(warn=0.02, bad=0.1),
            none="none",
            page=Page.INTERNALS,
        ),
    )
    yield rows(
        "Why a check did not pass",
        "Causes in the chosen time. Each is explained, with what to do, in docs/problems.md under its name. Many `temperror` of one kind "
        "are a resolver's fault, many `permerror` of one kind a large sender's.",
        Query(
            expr=some(increase(_RESULTS, HAS_PROBLEM, by="method,status,problem")),
            legend="results",
        ),
        Look(unit=Unit.COUNT, width=24, height=9),
    )


def _dmarc() -> Iterable[Panel]:
    yield _course(
        "DMARC results",
        "`fail` is forged mail, or mail that a list or a forwarder changed. `none`: the author's domain has no record.",
        "dmarc",
        _THIRD,
    )
    yield lines(
        "What is asked for, and what applies",
        "Failing messages by the policy that the domain asks for and the one that applies to it (`t=y` lowers it, `np` and `sp` may differ). "
        "Where these are rejected and should not be: a rule with an exception for that forwarder.",
        [
            Query(
                expr=rate(_POLICY, 'status="fail"', by="requested,applied"),
                legend="asks {{requested}}, applies {{applied}}",
            )
        ],
        Look(width=_THIRD, none="no failure"),
    )
    yield lines(
        "Where the record was found",
        "`own`: at the author's domain; `walk`: at a name above it (RFC 9989 §4.10). `none`: nowhere, so nothing is protected.",
        [Query(expr=rate(_POLICY, by="discovery"), legend="{{discovery}}")],
        Look(width=_THIRD, stacked=True, colors={"own": GREEN, "walk": "semi-dark-green", "none": GREY}),
    )
    yield lines(
        "Our own domains from outside",
        "Mail that comes from outside and says that it is from us. `fail` and accepted is a forgery that got through: publish "
        "`p=reject`, or look at the rule. `fail` of mail that is really ours: a sender without our key (newsletter, ticket system).",
        [
            Query(
                expr=rate("gateway_own_domain_messages_total", by="domain,dmarc,disposition"),
                legend="{{domain}} {{dmarc}} {{disposition}}",
            )
        ],
        Look(unit=Unit.MESSAGES_PER_SECOND, none="none"),
    )
    yield lines(
        "Tree walk against public suffix list",
        "Organizational domains where RFC 9989's tree walk and the older public suffix list differ. Each one is a domain whose DMARC "
        "result may differ between receivers. Nothing to do here; a rise is worth telling its owner.",
        [Query(expr=rate("gateway_dmarc_tree_walks_total", by="suffix_list"), legend="{{suffix_list}}")],
        Look(colors={"agrees": GREEN, "differs": ORANGE}),
    )


def _dkim() -> Iterable[Panel]:
    yield _course(
        "DKIM results",
        "One for each signature. `fail`: the message was changed on its way, or the signature is forged. `policy`: SHA-1 or a short key.",
        "dkim",
        _THIRD,
    )
    yield lines(
        "Algorithm and key",
        "Signatures by how they were made. `rsa-sha1` and keys under 1024 bits never pass (RFC 8301). A new line is a sender who "
        "changed something.",
        [
            Query(
                expr=rate("gateway_dkim_signatures_total", by="algorithm,key_bits"),
                legend="{{algorithm}} {{key_bits}}",
            )
        ],
        Look(width=_THIRD),
    )
    yield lines(
        "Canonicalization",
        "Part of the signatures that pass, by c=. `simple` breaks easily on the way; a fall of `relaxed/relaxed` is a forwarder, or a "
        "filter before us, that changes messages.",
        [
            Query(
                expr=share("gateway_dkim_signatures_total", 'status="pass"', by="canonicalization"),
                legend="{{canonicalization}}",
            )
        ],
        Look(unit=Unit.SHARE, width=_THIRD),
    )


def _others() -> Iterable[Panel]:
    yield _course(
        "SPF of the sender",
        "MAIL FROM, the one that DMARC uses. `fail` and `softfail`: forwarders and forgeries. `permerror`: a record with too many look-ups.",
        "spf",
        12,
    )
    yield _course(
        "SPF of HELO",
        "The name that the client greets with; reported, and never used for DMARC.",
        "spf_helo",
        12,
    )
    yield _course(
        "ARC chains",
        "`pass`: forwarders vouch for what they saw. It counts only for those whom a rule believes. `fail`: a chain that was broken.",
        "arc",
        _THIRD,
    )
    yield lines(
        "ARC seals of ours",
        "By what they say of the chain before. `fail`: it was broken already when it came. None: `[arc]` has no key, or nothing "
        "was let in that is to be sealed.",
        [Query(expr=rate("gateway_arc_seals_total", by="cv"), legend="cv={{cv}}")],
        Look(width=_THIRD, none="nothing sealed"),
    )
    yield _course(
        "Reverse DNS",
        "Whether the address has a name that leads back to it (iprev). `fail` is common with botnets, and with small servers.",
        "iprev",
        _THIRD,
    )


def _signing() -> Iterable[Panel]:
    yield lines(
        "Signatures made",
        "By domain and algorithm. A line that ends: its key is gone from `[[signing]]`, or nobody of that domain logs in any more.",
        [
            Query(
                expr=rate("gateway_signatures_total", by="domain,algorithm"),
                legend="{{domain}} {{algorithm}}",
            )
        ],
        Look(width=_THIRD, none="nothing signed"),
    )
    yield lines(
        "Own messages without a signature",
        "And why. Receivers with DMARC may refuse them. `gateway keys list` says which domains have a key.",
        [Query(expr=rate("gateway_unsigned_messages_total", by="reason"), legend="{{reason}}")],
        Look(width=_THIRD, none="none"),
    )
    yield rows(
        "DKIM keys: time until the next step",
        "Managed keys. Below 0: `gateway keys rotate` has not done what is due; is the timer `gateway-keys.timer` on, and does the DNS "
        "show the record? `gateway keys list` says what it waits for.",
        Query(
            expr=f"{grouped('max', select('gateway_dkim_key_due_timestamp_seconds'), 'domain,selector,state')} - time()",
            legend="time left",
        ),
        Look(
            unit=Unit.SECONDS,
            width=_THIRD,
            limits=Limits(warn=0, bad=-86_400, low_is_bad=True),
            none="no managed keys",
        ),
    )
