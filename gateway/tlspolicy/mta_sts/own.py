"""Our own policy (RFC 8461): where it is served, and the `id` that tells others when it changed.

Senders look at the TXT record's `id` alone and fetch the policy again only when it differs (RFC 8461 §3.1). So the id is made
of the policy's text: the same text has the same id on every node and after every restart, and no change can be forgotten.
"""

import hashlib
from typing import Final

from gateway.tlspolicy.mta_sts.policy import Policy

MAX_ID_CHARACTERS: Final = 32  # RFC 8461 §3.1
WELL_KNOWN_PATH: Final = "/.well-known/mta-sts.txt"  # RFC 8461 §3.3
POLICY_HOST_LABEL: Final = "mta-sts"  # RFC 8461 §3.3


def policy_identifier(policy: Policy) -> str:
    """`id=`: for another policy another one."""
    return hashlib.sha256(str(policy).encode("ascii")).hexdigest()[:MAX_ID_CHARACTERS]


def policy_record(policy: Policy) -> bytes:
    """The TXT record at `_mta-sts.<domain>`."""
    return f"v=STSv1; id={policy_identifier(policy)};".encode("ascii")


def policy_domain(host: str) -> str | None:
    """The domain whose policy host this is: `example.net` for `mta-sts.example.net`; None where it is none."""
    label, _, domain = host.partition(".")
    return domain if label == POLICY_HOST_LABEL and domain else None
