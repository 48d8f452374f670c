"""Who broke the protocol: the peer, who hears a reply for it, or we, which is a bug."""

from gateway.mail.reply import Reply


class RemoteProtocolError(Exception):
    """The peer broke the protocol.

    Args:
        reply: what it is told. For a downstream peer, who is told nothing, it is what our client hears.
        closes: the conversation cannot go on, because it is no longer known where the next command begins.
    """

    def __init__(self, reply: Reply, *, closes: bool = False) -> None:
        super().__init__(str(reply))
        self.reply = reply
        self.closes = closes


class LocalProtocolError(Exception):
    """We were about to break the protocol: a bug, never the peer's doing."""
