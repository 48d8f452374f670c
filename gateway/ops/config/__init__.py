"""The operator's config file: one TOML file, checked as a whole before anything starts.

The sections are here; `gateway.ops.config.load` reads them from a file, `gateway.ops.config.example` writes the example.
"""

from gateway.ops.config.models import (
    ArcSettings,
    DkimSettings,
    DnsSettings,
    DnsUpdateSettings,
    HttpSettings,
    InboundSettings,
    KeysSettings,
    LogSettings,
    MilterSettings,
    MtaStsSettings,
    OutboundSettings,
    OutboundTlsSettings,
    PolicySettings,
    Settings,
    SigningSettings,
    SmtpSettings,
    StoreSettings,
    SubmissionSettings,
    TlsPolicySettings,
    TraceSettings,
)
from gateway.ops.config.values import HostPort, IpNetwork

__all__ = [
    "ArcSettings",
    "DkimSettings",
    "DnsSettings",
    "DnsUpdateSettings",
    "HostPort",
    "HttpSettings",
    "InboundSettings",
    "IpNetwork",
    "KeysSettings",
    "LogSettings",
    "MilterSettings",
    "MtaStsSettings",
    "OutboundSettings",
    "OutboundTlsSettings",
    "PolicySettings",
    "Settings",
    "SigningSettings",
    "SmtpSettings",
    "StoreSettings",
    "SubmissionSettings",
    "TlsPolicySettings",
    "TraceSettings",
]
