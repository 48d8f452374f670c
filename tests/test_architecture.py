"""Lower layers never import higher ones, and what touches the world stands where one looks for it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "gateway").rglob("*.py"))

_MAY_IMPORT = {
    "mail": {"mail"},
    "dns": {"dns", "mail"},
    "auth": {"auth", "dns", "mail"},
    "tlspolicy": {"tlspolicy", "dns", "mail"},
    "store": {"store", "trace", "tlspolicy", "dns", "mail", "verdict"},
    "keys": {"keys", "auth", "dns", "mail"},
    "postfix": {"postfix", "tlspolicy", "dns", "mail"},  # sans-IO, as smtp
    "policy": {"policy", "auth", "dns", "mail", "verdict"},
    "verdict": {"auth", "dns", "mail"},
    "trace": {"trace", "auth", "dns", "mail", "verdict"},
    "explain": {"explain", "trace", "auth", "tlspolicy", "mail", "verdict"},
    "stamp": {"auth", "mail"},
    "connection": {"auth", "dns", "mail"},
    "submission": {"mail"},
    "inquiry": {"dns", "mail", "policy", "verdict"},
    "engine": {"connection", "inquiry", "auth", "dns", "mail", "policy", "stamp", "submission", "verdict"},
    "smtp": {"smtp", "mail", "verdict"},  # sans-IO: values and verdicts, nothing else
    "milter": {"milter", "mail", "verdict"},
    "ops": {"ops", "keys", "auth", "dns", "mail", "policy", "tlspolicy", "verdict"},
    "doctor": {"doctor", "publish", "ops", "tlspolicy", "auth", "dns", "mail"},
    "publish": {"publish", "keys", "ops", "tlspolicy", "auth", "dns", "mail"},
    "pages": {
        "pages",
        "listeners",
        "doctor",
        "explain",
        "store",
        "trace",
        "ops",
        "tlspolicy",
        "auth",
        "mail",
        "verdict",
    },
    "listeners": {
        "listeners",
        "smtp",
        "milter",
        "postfix",
        "ops",
        "store",
        "trace",
        "tlspolicy",
        "dns",
        "mail",
        "verdict",
    },
}
_ONLY_IN = {
    # zone_text reads type codes; an RFC 2136 update with TSIG is no question that our own messages could ask
    "dns": {"dns", "publish/update.py"},
    "prometheus_client": {"ops/register.py"},
    "socket": {
        "listeners",
        "dns",
        "auth/spf/evaluation.py",  # there only inet_pton, as pyspf does
        "tlspolicy/mta_sts/fetch.py",  # there only the constants of aiohttp's resolver
    },
    "Milter": {"listeners"},
    "milter": {"listeners"},
    "aiohttp": {"listeners", "pages", "tlspolicy/mta_sts/fetch.py"},
    "jinja2": {"pages"},
    "markupsafe": {"pages"},
    "sqlalchemy": {"store"},
    "msgspec": {"trace", "ops/log.py"},  # where a line is written for every message
    "email": set(),  # recursive and quadratic on hostile headers
}


def imports(path: Path) -> set[str]:
    """Every module that is imported for use; what only the type checker reads does not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            found.add(node.module or "")
            if node.module == "gateway":
                found |= {f"gateway.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_lower_never_imports_higher(path: Path) -> None:
    layer = path.relative_to(ROOT / "gateway").parts[0].removesuffix(".py")
    allowed = _MAY_IMPORT.get(layer)
    if allowed is None:  # cli, __main__: the top
        return
    used = {name.split(".")[1] for name in imports(path) if name.startswith("gateway.")} - {"__version__"}
    assert used <= allowed, f"{layer}/ must not import {sorted(used - allowed)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_foreign_libraries_stay_in_their_place(path: Path) -> None:
    inside = path.relative_to(ROOT / "gateway")
    for name in imports(path):
        places = _ONLY_IN.get(name.split(".")[0])
        if places is not None:
            assert inside.parts[0] in places or inside.as_posix() in places, (
                f"{name} does not belong in {inside}"
            )
