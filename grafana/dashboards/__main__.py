"""Writes the dashboards: `python -m grafana.dashboards`, after a change to their code."""

import json
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.dashboards import authentication, internals, mail_flow, outbound_tls, reports

FOLDER: Final = Path(__file__).parents[1] / "json"
_BUILDERS: Final = {
    "mail-flow.json": mail_flow.build,
    "authentication.json": authentication.build,
    "outbound-tls.json": outbound_tls.build,
    "reports.json": reports.build,
    "internals.json": internals.build,
}


def render() -> dict[str, str]:
    """Each dashboard's JSON by the name of its file."""
    return {
        name: json.dumps(build(), cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        for name, build in _BUILDERS.items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, content in render().items():
        (FOLDER / name).write_text(content, encoding="utf-8")
