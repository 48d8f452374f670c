"""What OpenSSL says of real certificates."""

import ssl
from datetime import UTC, datetime, timedelta

import pytest
import trustme

from gateway.tlspolicy.certificate import classify_certificate_error
from gateway.tlspolicy.model import FailureType, TlsProblem

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
CA = trustme.CA()
NAME = "mx.example.com"


def error_of(leaf: trustme.LeafCert, name: str = NAME) -> ssl.SSLCertVerificationError:
    """Shake hands in memory until the client refuses."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(server_context)
    client_context = ssl.create_default_context()
    CA.configure_trust(client_context)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(10):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                return error
    raise AssertionError("the client was content")


@pytest.mark.parametrize(
    ("leaf", "name", "problem", "failure"),
    [
        (CA.issue_cert("mx.example.org"), NAME, TlsProblem.CERTIFICATE_NAME, FailureType.CERTIFICATE_HOST_MISMATCH),
        (CA.issue_cert(NAME), "192.0.2.1", TlsProblem.CERTIFICATE_NAME, FailureType.CERTIFICATE_HOST_MISMATCH),
        (CA.issue_cert(NAME, not_before=NOW - 9 * DAY, not_after=NOW - DAY), NAME, TlsProblem.CERTIFICATE_EXPIRED, FailureType.CERTIFICATE_EXPIRED),
        (CA.issue_cert(NAME, not_before=NOW + DAY, not_after=NOW + 9 * DAY), NAME, TlsProblem.CERTIFICATE_EXPIRED, FailureType.CERTIFICATE_EXPIRED),
        (trustme.CA().issue_cert(NAME), NAME, TlsProblem.CERTIFICATE_UNTRUSTED, FailureType.CERTIFICATE_NOT_TRUSTED),
    ],
)  # fmt: skip
def test_why_a_certificate_was_refused(
    leaf: trustme.LeafCert, name: str, problem: TlsProblem, failure: FailureType
) -> None:
    assert classify_certificate_error(error_of(leaf, name)) == (problem, failure)


def test_an_error_without_a_code_is_a_chain_that_is_not_trusted() -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    assert classify_certificate_error(error)[0] is TlsProblem.CERTIFICATE_UNTRUSTED
