"""Values of which several are made for every message and written into its trace.

What a frozen dataclass is, but made in a fifth of the time, written as JSON in half of it, and without what is as ever.
"""

from typing import Final

from msgspec import Struct, field, structs

__all__ = ["Value", "field", "replace"]

replace: Final = structs.replace
"""The same value with other attributes, as `dataclasses.replace`."""


class Value(Struct, frozen=True, omit_defaults=True, gc=False):
    """Base of such values. None can be part of a cycle, so the garbage collector need not look at them."""
