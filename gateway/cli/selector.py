"""A DKIM selector as somebody typed it."""

from gateway.cli.errors import UsageFault
from gateway.ops.config.values import is_domain
from gateway.ops.text import printable


def selector_from(text: str) -> str:
    """In lower case.

    Raises:
        UsageFault: it is none.
    """
    if not is_domain(text):
        raise UsageFault(f"{printable(text, 80)} is no selector: letters, digits and hyphens, like 2026a")
    return text.lower()
