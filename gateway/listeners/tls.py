"""TLS as a server of mail: certificates from files, TLS 1.2 or newer (RFC 8996, RFC 9325)."""

import ssl
from pathlib import Path


def make_server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """A context for incoming connections; reads both files now.

    Raises:
        OSError: a file cannot be read, is no PEM, or the two do not belong together (`ssl.SSLError` is an OSError).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client could make us do the dear part of the handshake again and again.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.load_cert_chain(certificate, key)
    return context
