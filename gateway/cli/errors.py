"""What a command cannot go on with because of what it was told."""


class UsageFault(Exception):  # noqa: N818 - it is the operator's, not the program's
    """An argument that cannot be used; the text says what is wrong and what would be right."""
