"""`gateway config check` and `gateway policy check`: files read as the gateway would, and nothing started."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gateway.cli.show import terminal
from gateway.ops.config.load import load_config
from gateway.ops.text import printable
from gateway.policy import SHIPPED, RuleError, load_rules

_MAX_SAYS: Final = 2_000

_DOORS: Final = ("inbound", "submission", "outbound", "milter", "tls_policy", "mta_sts", "http")
"""Sections with a `listen` of their own."""


def run_config_check(path: Path) -> int:
    """Read a config and every file that it names.

    Raises:
        ConfigError: with every fault.
    """
    loaded = load_config(path, os.environ)
    for warning in loaded.warnings:
        terminal(to_stderr=True).print(f"warning: {warning}", style="yellow")
    settings = loaded.settings
    doors = [name for name in _DOORS if getattr(getattr(settings, name), "listen", None)]
    terminal().print(f"{path}: good; listeners: {', '.join(doors)}; rules: {settings.policy.rules}")
    return 0


def run_policy_check(sources: Sequence[str] | None) -> int:
    """Read each rule file and run its examples; 2 where one of them is faulty, after all have been read."""
    return max(_check_rules(source) for source in sources or SHIPPED)


def _check_rules(source: str) -> int:
    try:
        rules = load_rules(source)
    except RuleError as error:
        for fault in error.faults:
            terminal(to_stderr=True).print(printable(str(fault), _MAX_SAYS), style="red")
        return 2
    failures = rules.failed_examples()
    for failure in failures:
        terminal(to_stderr=True).print(failure, style="red")
    console = terminal()
    for rule in rules.rules:
        console.print(f"  {rule.id:<32} {rule.disposition:<10} {len(rule.examples)} examples")
    verdict = f"{len(failures)} examples fail" if failures else "all examples hold"
    console.print(f"{source}: {len(rules.rules)} rules, {rules.mode}; {verdict}")
    return 2 if failures else 0
