"""Text of strangers made fit for a log line, a terminal and an error message.

A peer chooses its HELO, its addresses and its DNS records. Written as they come, they could start a forged log line, move
the cursor of whoever reads the log, or turn the reading order round.
"""

from typing import Final

MAX_CHARACTERS: Final = 512


def printable(text: str, limit: int = MAX_CHARACTERS) -> str:
    r"""The text with everything that does not print escaped (`\x1b`, `\u202e`), cut to `limit` characters.

    Controls, line ends, bidirectional and other format characters, surrogates and unassigned code points do not print.
    """
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isprintable():
        return text
    escaped = "".join(one if one.isprintable() else _escape(one) for one in text)
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
