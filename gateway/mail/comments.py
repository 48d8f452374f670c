"""Comments and blanks between the words of a structured field (RFC 5322 §3.2.2), skipped without recursion.

A peer decides how deep comments nest, so they are counted; a reader that recurses can be crashed by one field.
"""

import re
from typing import Final

from gateway.mail.errors import ParseError

_BLANKS: Final = re.compile(r"[ \t]*")
_DELIMITER: Final = re.compile(r"\\.|[()]", re.DOTALL)


def end_of_comment(text: str, start: int) -> int:
    """The place after the comment whose opening bracket stands at `start`.

    Raises:
        ParseError: it is never closed.
    """
    depth = 0
    for delimiter in _DELIMITER.finditer(text, start):
        if delimiter[0] == "(":
            depth += 1
        elif delimiter[0] == ")":
            depth -= 1
            if depth == 0:
                return delimiter.end()
    raise ParseError("a comment that is never closed", offset=start)


def skip_comments(text: str, start: int) -> int:
    """The place of the first word at or after `start`; `text` is unfolded.

    Raises:
        ParseError: a comment is never closed.
    """
    at = start
    while True:
        at = _BLANKS.match(text, at).end()  # type: ignore[union-attr]  # it always matches, if only nothing
        if not text.startswith("(", at):
            return at
        at = end_of_comment(text, at)
