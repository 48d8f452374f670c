r"""Domain names on their way into and out of the DNS (RFC 1035 §2.3.4, §3.1).

A name is text in lower case, in A-labels, without a final dot. Names to be asked for often come from a stranger (an SPF macro,
a DKIM selector), so that a backslash in them is that very byte and never a master-file escape: `a\046b` must not become
`a.b`. Names that come back may hold any byte at all: those that would change what the text means are shown as `\DDD`.
"""

import re
from collections.abc import Iterable

MAX_NAME_BYTES = 253  # RFC 1035 §2.3.4: 255 on the wire, of which the first length and the root take two
MAX_LABEL_BYTES = 63  # RFC 1035 §2.3.4

_UNSAFE = re.compile(rb"[^!-~]|\.")
"""Bytes of a label that would be read as something else: a dot inside it, white space, controls, 8-bit data."""


def canonical_name(name: str) -> str | None:
    """`name` as it is asked for and cached; None where no such name can exist, so that nobody need be asked.

    One final dot is forgiven. The root is not a mail domain: the empty name counts as an empty label.
    """
    if not name.isascii():  # before lower(): KELVIN SIGN in lower case is an ASCII k
        return None
    name = name.removesuffix(".").lower()
    if len(name) > MAX_NAME_BYTES:
        return None
    for label in name.split("."):
        if not 0 < len(label) <= MAX_LABEL_BYTES:
            return None
    return name


def name_from_labels(labels: Iterable[bytes]) -> str:
    """The text of a name received as labels, the root's empty label left out; the root itself is `""`."""
    return ".".join([_label_text(label) for label in labels if label])


def _label_text(label: bytes) -> str:
    return _UNSAFE.sub(_escape, label.lower()).decode("ascii")


def _escape(match: re.Match[bytes]) -> bytes:
    return b"\\%03d" % match[0][0]
