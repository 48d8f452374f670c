"""What an operator decides about the proxy, as far as the protocol needs it; the listener makes it from the config."""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from gateway.mail.envelope import IpAddress, Listener
from gateway.smtp.relay import LocalDomains

Networks = tuple[IPv4Network | IPv6Network, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """See the config's `[inbound]` for what each means.

    Attributes:
        role: which door this is: who may come in, and what may leave.
        hide_client: what leaves does not tell from where its author sent it.
        normalize: make CRLF of bare line ends instead of refusing the message.
    """

    role: Listener = Listener.INBOUND
    hostname: str
    local_domains: LocalDomains
    max_message_bytes: int
    max_recipients: int
    max_errors: int
    hide_client: bool = False
    normalize: bool = False
    trusted_networks: Networks = ()
    proxy_protocol_from: Networks = ()
    xclient_from: Networks = ()


def is_within(address: IpAddress, networks: Networks) -> bool:
    """Whether the address is in one of them."""
    return any(address in network for network in networks)
