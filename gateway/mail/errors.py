"""The one way in which a parser says no."""


class ParseError(ValueError):
    """The text is not what its standard says it must be.

    Every parser of this package returns a value or raises a subclass of this, never anything else.

    Args:
        message: what is wrong, for the operator; peer text in it is already escaped and cut.
        offset: where in the input, in bytes or characters from its start; None where no single place is to blame.
    """

    def __init__(self, message: str, *, offset: int | None = None) -> None:
        super().__init__(message)
        self.offset = offset
