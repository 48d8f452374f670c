"""Who is let in: the token's bearer, or, without a token, this host's own browser that asked for an address."""

import pytest
from multidict import CIMultiDict

from gateway.pages.access import COOKIE_S, Access, Answer, is_loopback, safe_path

TOKEN = "0123456789abcdef0123"


@pytest.mark.parametrize(
    ("listen", "peer", "headers", "answer"),
    [
        ("127.0.0.1", "127.0.0.1", {"Host": "127.0.0.1:9108"}, Answer.LET_IN),
        ("127.0.0.1", "127.0.0.1", {"Host": "LOCALHOST:9108"}, Answer.LET_IN),
        ("::1", "::1", {"Host": "[::1]:9108"}, Answer.LET_IN),
        ("127.0.0.1", "::ffff:127.0.0.1", {"Host": "127.0.0.1"}, Answer.LET_IN),
        ("127.0.0.1", "127.0.0.1", {"Host": "rebound.example:9108"}, Answer.NOT_BY_NAME),  # DNS rebinding
        ("127.0.0.1", "127.0.0.1", {"Host": "localhost.rebound.example"}, Answer.NOT_BY_NAME),
        ("127.0.0.1", "127.0.0.1", {"Host": "127.0.0.1.rebound.example"}, Answer.NOT_BY_NAME),
        ("127.0.0.1", "127.0.0.1", {"Host": "[::1"}, Answer.NOT_BY_NAME),
        ("127.0.0.1", "127.0.0.1", {}, Answer.NOT_BY_NAME),
        ("0.0.0.0", "127.0.0.1", {"Host": "127.0.0.1"}, Answer.NOT_HERE),  # others can reach it, too
        ("192.0.2.1", "192.0.2.7", {"Host": "192.0.2.1"}, Answer.NOT_HERE),
        ("127.0.0.1", "192.0.2.7", {"Host": "127.0.0.1"}, Answer.NOT_LOCAL),
        ("127.0.0.1", "", {"Host": "127.0.0.1"}, Answer.NOT_LOCAL),
        ("127.0.0.1", "127.0.0.1", {"Host": "127.0.0.1", "X-Forwarded-For": "203.0.113.9"}, Answer.NOT_LOCAL),
        ("127.0.0.1", "127.0.0.1", {"Host": "127.0.0.1", "Forwarded": "for=203.0.113.9"}, Answer.NOT_LOCAL),
    ],
)
def test_without_a_token_only_this_host(
    listen: str, peer: str, headers: dict[str, str], answer: Answer
) -> None:
    assert Access(listen).judge("GET", CIMultiDict(headers), "", peer) is answer


@pytest.mark.parametrize(
    ("authorization", "answer"),
    [
        (f"Bearer {TOKEN}", Answer.LET_IN),
        (f"bearer {TOKEN}", Answer.LET_IN),
        (f"Bearer {TOKEN}x", Answer.LOG_IN),
        (f"Bearer {TOKEN[:-1]}", Answer.LOG_IN),
        (f"Basic {TOKEN}", Answer.LOG_IN),
        ("Bearer", Answer.LOG_IN),
        ("Bearer \udc80é", Answer.LOG_IN),
        ("", Answer.LOG_IN),
    ],
)
def test_with_a_token_its_bearer_from_anywhere(authorization: str, answer: Answer) -> None:
    headers = CIMultiDict({"Host": "gateway.example.net", "Authorization": authorization})
    assert Access("0.0.0.0", TOKEN).judge("GET", headers, "", "203.0.113.9") is answer


def test_a_cookie_ends_with_its_time_and_with_its_token() -> None:
    clock = [1_000_000.0]
    access = Access("0.0.0.0", TOKEN, now=lambda: clock[0])
    cookie = access.make_cookie()
    assert TOKEN not in cookie
    assert access.judge("GET", {}, cookie, "203.0.113.9") is Answer.LET_IN
    assert (
        Access("0.0.0.0", TOKEN + "new", now=lambda: clock[0]).judge("GET", {}, cookie, "") is Answer.LOG_IN
    )
    clock[0] += COOKIE_S
    assert access.judge("GET", {}, cookie, "203.0.113.9") is Answer.LOG_IN


def test_a_cookie_cannot_be_made_without_the_token() -> None:
    access = Access("0.0.0.0", TOKEN)
    expiry, _, proof = access.make_cookie().partition(".")
    for forged in (
        "",
        ".",
        f"{int(expiry) + 1}.{proof}",
        f"{expiry}.{proof[:-1]}",
        f"{expiry}.é",
        f"x.{proof}",
    ):
        assert access.judge("GET", {}, forged, "203.0.113.9") is Answer.LOG_IN, forged


@pytest.mark.parametrize(
    ("method", "headers", "answer"),
    [
        (
            "GET",
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
            Answer.LET_IN,
        ),  # a dashboard's link
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, Answer.FROM_ELSEWHERE),
        ("POST", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, Answer.FROM_ELSEWHERE),
        ("GET", {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, Answer.LET_IN),
        ("GET", {}, Answer.LET_IN),
    ],
)
def test_what_another_sites_page_may_ask_for(method: str, headers: dict[str, str], answer: Answer) -> None:
    headers = {"Host": "127.0.0.1", **headers}
    assert Access("127.0.0.1").judge(method, CIMultiDict(headers), "", "127.0.0.1") is answer


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("/traces?q=a%20b", "/traces?q=a%20b"),
        ("//evil.example/", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example/", "/"),
        ("/a\r\nSet-Cookie: x=y", "/"),
        ("javascript:alert(1)", "/"),
        ("", "/"),
    ],
)
def test_after_the_log_in_one_stays_here(given: str, path: str) -> None:
    assert safe_path(given) == path


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("mx", False),
    ],
)
def test_loopback(host: str, *, is_it: bool) -> None:
    assert is_loopback(host) is is_it
