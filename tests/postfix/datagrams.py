"""Datagrams in the form that sys4's libtlsrpt 0.5 writes (tlsrpt_init_delivery_request and what follows it)."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

TLSA, STS, NONE = 1, 2, 9
RECORD = "v=TLSRPTv1; rua=mailto:tls@example.com"


def policy(type_: int = STS, *details: Mapping[str, Any], failed: bool | None = None) -> dict[str, Any]:
    """One policy; it failed where there are details, unless `failed` says otherwise."""
    given: dict[str, Any] = {"policy-type": type_}
    if details:
        given["failure-details"] = list(details)
    return given | {"t": len(details), "f": int(bool(details) if failed is None else failed)}


def sts_policy(*details: Mapping[str, Any], failed: bool | None = None) -> dict[str, Any]:
    return policy(STS, *details, failed=failed) | {
        "policy-domain": "example.com",
        "policy-string": ["version: STSv1", "mode: enforce", "mx: *.example.com", "max_age: 86400"],
        "mx-host": ["*.example.com"],
    }


def tlsa_policy(*details: Mapping[str, Any]) -> dict[str, Any]:
    return policy(TLSA, *details) | {
        "policy-domain": "mx.example.com",
        "policy-string": ["3 1 1 " + "00" * 32],
    }


def detail(code: int = 202, **more: str) -> dict[str, Any]:
    given = {
        "c": code,
        "s": "192.0.2.25",
        "n": "mx.example.com",
        "h": "250-mx.example.com Hello\r\n250-PIPELINING\r\n250 STARTTLS",
        "r": "2001:DB8::25",
        "f": "certificate verify failed",
    }
    return given | more


def datagram(
    *policies: Mapping[str, Any], domain: str = "example.com", version: str | None = "1", **more: Any
) -> bytes:
    report: dict[str, Any] = {} if version is None else {"dpv": version}
    report |= {"d": domain, "pr": RECORD, "policies": list(policies)} | more
    return json.dumps(report).encode()


def mixed() -> Sequence[bytes]:
    """Sessions of all kinds, several alike."""
    return [
        *[datagram(sts_policy())] * 5,
        *[datagram(sts_policy(detail()))] * 3,
        datagram(sts_policy(detail(204))),
        *[datagram(tlsa_policy())] * 2,
        datagram(tlsa_policy(detail(304))),
        datagram(policy(NONE), domain="example.net"),
        datagram(policy(NONE, detail(201)), domain="example.net", version=None),
        datagram(sts_policy(), tlsa_policy(detail(205)), domain="example.org"),
    ]
