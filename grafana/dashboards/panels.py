"""How a number looks: the panels that all dashboards are made of, and the frame around them.

Each panel has a text that says what to do when it looks wrong; it is shown behind the `i` at its title.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeVar

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard, prometheus, stat, table, text, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.text import TextMode

from grafana.dashboards.queries import CHOSEN, PER_RATE_INTERVAL, select

GRID_WIDTH: Final = 24
TAG: Final = "mail-gateway"
GREEN, YELLOW, ORANGE, RED, BLUE, GREY = "green", "yellow", "orange", "red", "blue", "text"

_SOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")


class Unit(StrEnum):
    """Grafana's names."""

    COUNT = "short"
    PER_SECOND = "cps"
    MESSAGES_PER_SECOND = "mps"
    SECONDS = "s"
    BYTES = "bytes"
    BYTES_PER_SECOND = "Bps"
    SHARE = "percentunit"


class Page(StrEnum):
    """The dashboards, by uid."""

    MAIL_FLOW = "gateway-mail-flow"
    AUTHENTICATION = "gateway-authentication"
    OUTBOUND_TLS = "gateway-outbound-tls"
    REPORTS = "gateway-reports"
    INTERNALS = "gateway-internals"

    @property
    def heading(self) -> str:
        """As on the screen."""
        return _HEADINGS[self]


_HEADINGS: Final = {
    Page.MAIL_FLOW: "Mail flow",
    Page.AUTHENTICATION: "Authentication",
    Page.OUTBOUND_TLS: "Outbound TLS",
    Page.REPORTS: "Reports",
    Page.INTERNALS: "Internals",
}

DISPOSITIONS: Final = {"accept": GREEN, "quarantine": ORANGE, "defer": BLUE, "reject": RED}
STATUSES: Final = {
    "pass": GREEN,
    "none": GREY,
    "neutral": GREY,
    "softfail": YELLOW,
    "policy": YELLOW,
    "fail": RED,
    "permerror": ORANGE,
    "temperror": BLUE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One question to Prometheus.

    Attributes:
        expr: PromQL.
        legend: how each series is called; `{{label}}` stands for its label.
        exemplars: show single messages as dots that lead to their trace.
    """

    expr: str
    legend: str = ""
    exemplars: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """From where on a number is worth a look, and from where on it is bad.

    Attributes:
        warn: from here on it is orange; None: never.
        bad: from here on it is red; None: never.
        low_is_bad: below `bad` it is red, below `warn` orange.
    """

    warn: float | None = None
    bad: float | None = None
    low_is_bad: bool = False

    def steps(self) -> list[models.Threshold]:
        """Lowest first; the first has no bound."""
        if self.low_is_bad:
            bounds = [(None, RED), (self.bad, ORANGE if self.warn is not None else GREEN), (self.warn, GREEN)]
        else:
            bounds = [(None, GREEN), (self.warn, ORANGE), (self.bad, RED)]
        return [
            models.Threshold(value=value, color=color)
            for number, (value, color) in enumerate(bounds)
            if number == 0 or value is not None
        ]


ANY_IS_BAD: Final = Limits(bad=0.000_001)
ANY_IS_WORTH_A_LOOK: Final = Limits(warn=0.000_001)
DAYS_LEFT: Final = Limits(warn=14 * 86_400, bad=3 * 86_400, low_is_bad=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a panel shows its numbers.

    Attributes:
        unit: of all its numbers.
        width: of 24.
        height: in units of some 30 pixels.
        limits: see there; None: no number is good or bad by itself.
        colors: by the series' name; others take the next of the palette.
        stacked: series are parts of one sum.
        words: what a number is called; then it is shown by that.
        none: what is shown where there is no data.
        page: the dashboard that tells more.
    """

    unit: Unit = Unit.PER_SECOND
    width: int = 12
    height: int = 8
    limits: Limits | None = None
    colors: Mapping[str, str] | None = None
    stacked: bool = False
    words: Mapping[int, tuple[str, str]] | None = None
    none: str = "none yet"
    page: Page | None = None


Panel = stat.Panel | timeseries.Panel | table.Panel | text.Panel
_P = TypeVar("_P", stat.Panel, timeseries.Panel, table.Panel)


def number(title: str, description: str, query: Query, look: Look) -> stat.Panel:
    """One figure, or one for each series, with its course behind it."""
    panel = (
        stat.Panel()
        .with_target(_target(query, "A"))
        .graph_mode(common.BigValueGraphMode.NONE if look.words else common.BigValueGraphMode.AREA)
        .color_mode(common.BigValueColorMode.BACKGROUND if look.limits else common.BigValueColorMode.VALUE)
        .text_mode(common.BigValueTextMode.VALUE_AND_NAME if query.legend else common.BigValueTextMode.VALUE)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    return _finish(panel, title, description, look)


def lines(title: str, description: str, queries: Sequence[Query], look: Look) -> timeseries.Panel:
    """A course over time."""
    panel = (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(40 if look.stacked else 10)
        .show_points(common.VisibilityMode.NEVER)
        .span_nulls(False)  # noqa: FBT003 - the SDK's; a gap in the data is news
        .axis_soft_min(0)
        .tooltip(
            common_builders.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
        .legend(
            common_builders.VizLegendOptions()
            .show_legend(True)  # noqa: FBT003
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(
                common.LegendPlacement.RIGHT if look.width >= GRID_WIDTH else common.LegendPlacement.BOTTOM
            )
            .calcs(["lastNotNull", "max"])
        )
    )
    if look.stacked:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if look.limits:
        panel.thresholds_style(
            common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        )
    for number_, query in enumerate(queries):
        panel.with_target(_target(query, chr(ord("A") + number_)))
    return _finish(panel, title, description, look)


def rows(title: str, description: str, query: Query, look: Look) -> table.Panel:
    """A table of what there is now: a column for each label, and the number."""
    hidden = {"Time": True}
    panel = (
        table.Panel()
        .with_target(_target(query, "A").instant().format(PromQueryFormat.TABLE))
        .with_transformation(
            models.DataTransformerConfig(
                id_val="organize", options={"excludeByName": hidden, "renameByName": {"Value": query.legend}}
            )
        )
        .sort_by(
            [common_builders.TableSortByFieldState().display_name(query.legend).desc(not _is_low_first(look))]
        )
        .filterable(True)  # noqa: FBT003
    )
    return _finish(panel, title, description, look)


def _is_low_first(look: Look) -> bool:
    return look.limits is not None and look.limits.low_is_bad


def note(title: str, description: str, markdown: str, *, width: int, height: int) -> text.Panel:
    """Words instead of numbers."""
    return (
        text.Panel()
        .title(title)
        .description(description)
        .mode(TextMode.MARKDOWN)
        .content(markdown)
        .span(width)
        .height(height)
    )


def _target(query: Query, ref_id: str) -> prometheus.Dataquery:
    target = (
        prometheus.Dataquery().expr(query.expr).legend_format(query.legend or "__auto").ref_id(ref_id).range()
    )
    return target.exemplar(True) if query.exemplars else target  # noqa: FBT003 - the SDK's


def _finish(panel: _P, title: str, description: str, look: Look) -> _P:
    limits = look.limits or Limits()
    by_limits = look.limits is not None and not isinstance(panel, timeseries.Panel)
    mode = models.FieldColorModeId.THRESHOLDS if by_limits else models.FieldColorModeId.PALETTE_CLASSIC
    panel.title(title).description(description).datasource(_SOURCE)
    panel.span(look.width).height(look.height).unit(look.unit).no_value(look.none)
    panel.color_scheme(dashboard.FieldColor().mode(mode))
    panel.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(limits.steps()))
    if look.words:
        panel.mappings([_named(look.words)])
    for name, color in (look.colors or {}).items():
        fixed: Mapping[str, Any] = {"mode": "fixed", "fixedColor": color}
        panel.override_by_name(name, [models.DynamicConfigValue(id_val="color", value=fixed)])
    if look.page is not None:
        panel.links([_link_to(look.page)])
    return panel


def _named(words: Mapping[int, tuple[str, str]]) -> models.ValueMapping:
    return models.ValueMap(
        options={
            str(value): models.ValueMappingResult(text=word, color=color, index=index)
            for index, (value, (word, color)) in enumerate(words.items())
        }
    )


def _link_to(page: Page) -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink(page.heading)
        .type(models.DashboardLinkType.LINK)
        .url(f"/d/{page}")
        .include_vars(True)  # noqa: FBT003
        .keep_time(True)  # noqa: FBT003
        .tooltip(f"The same time and the same gateways on {page.heading}")
    )


class _Event(models.AnnotationQuery):
    """An annotation with words; the SDK has no field for them, Grafana's Prometheus source has."""

    def to_json(self) -> dict[str, object]:
        return super().to_json() | {"titleFormat": self.name, "tagKeys": "outcome", "step": "30s"}


class _EventBuilder(Builder[models.AnnotationQuery]):
    def __init__(self, name: str, expr: str, color: str) -> None:
        self._event = _Event(name=name, datasource=_SOURCE, expr=expr, icon_color=color)

    def build(self) -> models.AnnotationQuery:
        return self._event


def _reloads(outcome: str) -> str:
    return f"sum by (outcome) (changes({select('gateway_config_reload_total', outcome)}[{PER_RATE_INTERVAL}])) > 0"


class Board:
    """A dashboard under way: rows of panels in order, each with the next free place and id.

    Args:
        page: which it is.
        description: the question that it answers.
        has_listeners: its panels can be narrowed down to some doors.
    """

    def __init__(self, page: Page, description: str, *, has_listeners: bool = False) -> None:
        self._page = page
        self._ids = 0
        self._board = (
            dashboard.Dashboard(f"Gateway: {page.heading}")
            .uid(page)
            .description(description)
            .tags([TAG])
            .timezone("browser")
            .time("now-6h", "now")
            .refresh("30s")
            .tooltip(models.DashboardCursorSync.CROSSHAIR)
            .editable()
        )
        for variable in _variables(has_listeners=has_listeners):
            self._board.with_variable(variable)
        for name, outcome, color in (
            ("Config reloaded", 'outcome="ok"', BLUE),
            ("Config refused: the old one stands", 'outcome="refused"', RED),
        ):
            self._board.annotation(_EventBuilder(name, _reloads(outcome), color))
        for other in Page:
            if other is not page:
                self._board.link(_link_to(other))
        self._board.link(
            dashboard.DashboardLink("Traces")
            .type(models.DashboardLinkType.LINK)
            .url("${gateway_url}/traces")
            .icon("bolt")
            .target_blank(True)  # noqa: FBT003
            .tooltip("Why one message was refused: the gateway's own page")
        )

    def row(self, title: str, panels: Iterable[Panel]) -> None:
        """A heading, and the panels below it from left to right."""
        self._board.with_row(dashboard.Row(title).id(self._next_id()))
        for panel in panels:
            self._board.with_panel(panel.id(self._next_id()))

    def build(self) -> models.Dashboard:
        """The whole."""
        return self._board.build()

    def _next_id(self) -> int:
        self._ids += 1
        return self._ids


def _variables(*, has_listeners: bool) -> Iterable[Builder[models.VariableModel]]:
    everything = models.VariableOption(selected=True, text="All", value="$__all")
    yield dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    queries = {
        "job": "label_values(gateway_build_info, job)",
        "instance": 'label_values(gateway_build_info{job=~"$job"}, instance)',
    }
    if has_listeners:
        queries["listener"] = f"label_values(gateway_sessions_open{{{CHOSEN}}}, listener)"
    for name, query in queries.items():
        yield (
            dashboard.QueryVariable(name)
            .label(name.capitalize())
            .datasource(_SOURCE)
            .query(query)
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.ALPHABETICAL_ASC)
            .multi(True)  # noqa: FBT003
            .include_all(True)  # noqa: FBT003
            .all_value(".*")
            .current(everything)
        )
    yield (
        dashboard.TextBoxVariable("gateway_url")
        .label("Gateway's pages")
        .description("Where your browser reaches the gateway's http listener")
        .default_value("http://127.0.0.1:9108")
    )
