"""The operator's config file: one TOML file, checked as a whole before anything starts.

The sections are here; `gateway.ops.config.load` reads them from a file, `gateway.ops.config.example` writes the example.
"""

from gateway.ops.config.models import (
    DkimSettings,
    DnsSettings,
    HttpSettings,
    InboundSettings,
    LogSettings,
    MilterSettings,
    PolicySettings,
    Settings,
)
from gateway.ops.config.values import HostPort, IpNetwork

__all__ = [
    "DkimSettings",
    "DnsSettings",
    "HostPort",
    "HttpSettings",
    "InboundSettings",
    "IpNetwork",
    "LogSettings",
    "MilterSettings",
    "PolicySettings",
    "Settings",
]
