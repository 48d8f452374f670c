"""Why a certificate was refused, in our words and in those of a TLS report (RFC 8460 §4.3), from what OpenSSL said."""

import ssl
from typing import Final

from gateway.tlspolicy.model import FailureType, TlsProblem

# OpenSSL's X509_V_ERR_* (x509_vfy.h); the figures are part of its ABI and never change.
_EXPIRED: Final = frozenset({9, 10, 13, 14})  # not yet valid, expired, dates that cannot be read
_NAME: Final = frozenset({62, 63, 64})  # host, mail address, IP address


def classify_certificate_error(error: ssl.SSLCertVerificationError) -> tuple[TlsProblem, FailureType]:
    """The problem and what it is reported as; whatever is neither date nor name is a chain that is not trusted."""
    code = getattr(error, "verify_code", None)  # absent where Python itself raised it
    if code in _EXPIRED:
        return TlsProblem.CERTIFICATE_EXPIRED, FailureType.CERTIFICATE_EXPIRED
    if code in _NAME or (code is None and "ostname" in str(error)):
        return TlsProblem.CERTIFICATE_NAME, FailureType.CERTIFICATE_HOST_MISMATCH
    return TlsProblem.CERTIFICATE_UNTRUSTED, FailureType.CERTIFICATE_NOT_TRUSTED
