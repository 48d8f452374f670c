"""Authenticated Received Chain (RFC 8617): what those who handled a message before us found out, sealed step by step.

`sets` reads the chain, `verify` says whether it holds, `custody` whose word in it is believed, `seal` adds our own.
"""

from gateway.auth.arc.verify import check_arc

__all__ = ["check_arc"]
