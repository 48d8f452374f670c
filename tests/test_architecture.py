"""Lower layers never import higher ones, and what touches the world stands where one looks for it."""

import ast
import importlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    "msgspec": {"mail/value.py", "trace", "ops/log.py"},  # what is made and written for every message
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


# How the standard library reads a pattern; private, but the only reader that is right about classes and escapes.
_PATTERNS = importlib.import_module("re._parser")
_ONE_CHARACTER = frozenset({"ANY", "IN", "LITERAL", "NOT_LITERAL"})


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pattern_makes_a_group_possessive(path: Path) -> None:
    r"""Debian 12's Python 3.11.2 takes what such a group did not match (CPython's issues 100061 and 106052).

    Possessive classes, `[^"]*+`, are right everywhere. Of a group make one that can match in one way only, which needs
    no possessiveness: not `(?:[^"\\]|\\.)*+` but `[^"\\]*+(?:\\.[^"\\]*+)*`.
    """
    for line, text in texts(path):
        assert not has_possessive_group(text), f"{path.relative_to(ROOT)}:{line}: {text!r}"


@pytest.mark.parametrize(
    ("pattern", "refused"),
    [
        (r"[a-z]++", False),
        (r"(?:[a-z])*+;", False),  # no group to the compiler
        (rb"a?+\d{2,3}+[^;]*+", False),
        (r"[*+](?:a+b)+", False),
        (r"(?:ab)*+", True),
        (r"(?:a|b){1,3}+", False),
        (r"(?:ab|c){1,3}+", True),
        (r"(a)?+", True),
        (r"x(?:y(?=(?:[a]|bc)++))?", True),
        (rb"(?>a+)", True),
        ("not a pattern (", False),
    ],
)
def test_what_makes_a_group_possessive(pattern: str | bytes, *, refused: bool) -> None:
    assert has_possessive_group(pattern) is refused


def texts(path: Path) -> Iterator[tuple[int, str | bytes]]:
    """Every string of a module with its line; what is put into one stands in it as a group."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else "(?:xy)" for part in node.values]
            yield node.lineno, "".join(parts)


def has_possessive_group(pattern: str | bytes) -> bool:
    """False too of a text that is no pattern."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _is_group_possessive(_PATTERNS.parse(pattern))
        except (re.error, OverflowError):
            return False


def _is_group_possessive(node: Any) -> bool:
    if isinstance(node, _PATTERNS.SubPattern):
        return any(_is_group_possessive(part) for part in node.data)
    if not isinstance(node, tuple | list):
        return False
    match node:
        case (operation, *_) if str(operation) == "ATOMIC_GROUP":
            return True
        case (operation, (_, _, repeated)) if str(operation) == "POSSESSIVE_REPEAT":
            return len(repeated) != 1 or str(repeated[0][0]) not in _ONE_CHARACTER
    return any(_is_group_possessive(part) for part in node)
