"""Who may see the pages: whoever knows the token, or, where there is none, whoever sits at this host.

They show who writes to whom. Without a token they are served on loopback only, to a browser that asked for an address or
`localhost`: a name could be anybody's, whose owner lets it point here to have a browser read the pages to him (DNS rebinding).
"""

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from enum import Enum, auto
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

COOKIE: Final = "gateway_pages"
COOKIE_S: Final = 12 * 3_600

_FORWARDED: Final = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via")
"""What a proxy puts in: its client is not on loopback, however much the connection looks like it."""


class Answer(Enum):
    """What becomes of a request."""

    LET_IN = auto()
    LOG_IN = auto()  # the token is wanted
    NOT_HERE = auto()  # there is no token, and the listener can be reached from elsewhere
    NOT_LOCAL = auto()  # there is no token, and the request comes from elsewhere, or through a proxy
    NOT_BY_NAME = auto()  # there is no token, and the browser asked for a name
    FROM_ELSEWHERE = auto()  # another site's page made the browser ask


class Access:
    """The rules. `listen_host`: the listener's; `now`: in seconds since the epoch."""

    def __init__(
        self, listen_host: str, token: str | None = None, *, now: Callable[[], float] = time.time
    ) -> None:
        self._is_loopback = is_loopback(listen_host)
        self._token = None if token is None else token.encode()
        self._now = now

    @property
    def has_token(self) -> bool:
        """Whether there is anything to log in with."""
        return self._token is not None

    def judge(self, method: str, headers: Mapping[str, str], cookie: str, peer: str) -> Answer:
        """Whether a request is let in.

        Args:
            method: `GET`, `POST`.
            headers: of the request; names in any case.
            cookie: the value of `COOKIE`; empty where there is none.
            peer: the address at the other end.
        """
        if _is_from_elsewhere(method, headers):
            return Answer.FROM_ELSEWHERE
        if self._token is not None:
            return Answer.LET_IN if self._is_bearer(headers) or self._is_fresh(cookie) else Answer.LOG_IN
        if not self._is_loopback:
            return Answer.NOT_HERE
        if not is_loopback(peer) or any(name in headers for name in _FORWARDED):
            return Answer.NOT_LOCAL
        return Answer.LET_IN if _is_address(headers.get("Host", "")) else Answer.NOT_BY_NAME

    def is_token(self, text: str) -> bool:
        """Whether it is the token; takes as long for any."""
        return self._token is not None and hmac.compare_digest(
            self._token, text.strip().encode("utf-8", "replace")
        )

    def make_cookie(self) -> str:
        """A proof that the token was known, good for `COOKIE_S`, or until there is another token."""
        expiry = str(int(self._now()) + COOKIE_S)
        return f"{expiry}.{self._sign(expiry)}"

    def _is_bearer(self, headers: Mapping[str, str]) -> bool:
        scheme, _, value = headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.is_token(value)

    def _is_fresh(self, cookie: str) -> bool:
        expiry, _, proof = cookie.partition(".")
        if not hmac.compare_digest(self._sign(expiry).encode(), proof.encode("utf-8", "replace")):
            return False
        return int(expiry) > self._now()

    def _sign(self, expiry: str) -> str:
        message = f"gateway pages until {expiry}".encode("utf-8", "replace")
        return hmac.new(self._token or b"", message, hashlib.sha256).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether it is an address of this host only, or the name that always means one."""
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return host.lower() == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def safe_path(text: str) -> str:
    """Where to go after the log-in: a path on this site, else the front page."""
    is_ours = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable()
    return text if is_ours and "\\" not in text else "/"


def _is_address(host: str) -> bool:
    """Whether a Host field names an address or `localhost`, with or without a port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name in {"localhost", "localhost."}:
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_from_elsewhere(method: str, headers: Mapping[str, str]) -> bool:
    """A link from elsewhere may be followed; nothing else may be asked for by another site's page (Fetch Metadata)."""
    if headers.get("Sec-Fetch-Site") != "cross-site":
        return False
    return method != "GET" or headers.get("Sec-Fetch-Mode") != "navigate"
