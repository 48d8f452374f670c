"""The whole flow with nothing faked: `gateway serve`, real Postfix by both ways in, knot and unbound as DNS."""

import asyncio
import re
import smtplib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import dkim
import pytest

from gateway.dns.resolver import Answer, RecordType
from tests.auth.dkim.signing import rsa_pem, rsa_public
from tests.auth.dkim.test_sign_oracles import SIGNED_MAIL
from tests.corpus import RECIPIENT, CorpusCase, load_cases, zone_text
from tests.corpus import world as corpus_world
from tests.live.dns_bed import DnsBed
from tests.live.doors import free_port, hand_in
from tests.live.postfix import PostfixBed, open_directory, wait_until

pytestmark = pytest.mark.live

# The other cases need a broken DNS, which knot does not give, or a client that Postfix itself refuses.
CASES = {case.name: case for case in load_cases()}

CONFIG = """\
authserv_id = "mx.example.net"
local_domains = ["example.net"]
[dns]
servers = ["{dns}"]
[inbound]
listen = ["127.0.0.1:{inbound}"]
downstream = "127.0.0.1:{downstream}"
xclient_from = ["127.0.0.1"]
[milter]
listen = "unix:{folder}/milter.sock"
socket_mode = 0o666
[arc]
trusted_sealers = ["lists.example"]
seal_domain = "forward.example"
seal_selector = "rsa"
seal_key = "seal.pem"
[http]
listen = "127.0.0.1:{http}"
"""


class World:
    """A gateway with both doors open, a Postfix behind the one and a Postfix before the other."""

    def __init__(self, folder: Path, inbound: int, http: int, behind: PostfixBed, before: PostfixBed) -> None:
        self.folder = folder
        self.inbound = inbound
        self.http = http
        self.behind = behind
        self.before = before

    def by_proxy(self, case: CorpusCase) -> tuple[int, str]:
        return self._hand_in(self.inbound, case)

    def by_milter(self, case: CorpusCase) -> tuple[int, str]:
        return self._hand_in(self.before.port, case)

    def metrics(self) -> list[str]:
        """The lines of /metrics."""
        with urlopen(f"http://127.0.0.1:{self.http}/metrics", timeout=10) as page:
            return page.read().decode().splitlines()  # type: ignore[no-any-return]

    def _hand_in(self, port: int, case: CorpusCase) -> tuple[int, str]:
        return hand_in(port, ip=case.ip, helo=case.helo, mail_from=case.mail_from, raw=case.raw)


def zones() -> dict[str, str]:
    """The corpus' world cut into the zones that a real name server wants."""
    found: dict[str, list[str]] = {}
    for line in zone_text().splitlines():
        if not line or line.startswith((";", "$")):
            continue
        owner = line.split()[0].rstrip(".")
        labels = 5 if owner.endswith("in-addr.arpa") else 2
        found.setdefault(".".join(owner.split(".")[-labels:]), []).append(line)
    return {name: "\n".join(lines) + "\n" for name, lines in found.items()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with (
        open_directory() as folder,
        DnsBed.running(
            tmp_path_factory.mktemp("dns"), zones=zones(), signed=["honest.example", "bank.example"]
        ) as dns,
    ):
        inbound, http = free_port(), free_port()
        behind = PostfixBed.start(folder / "behind", xclient=True, local_domains=("example.net",))
        before = PostfixBed.start(
            folder / "before",
            xclient=True,
            local_domains=("example.net",),
            milters=(f"unix:{folder}/milter.sock",),
        )
        (folder / "gateway.toml").write_text(
            CONFIG.format(
                dns=dns.resolver_address, inbound=inbound, downstream=behind.port, folder=folder, http=http
            )
        )
        (folder / "seal.pem").write_bytes(rsa_pem())
        (folder / "seal.pem").chmod(0o600)
        with (folder / "log").open("wb") as log:
            gateway = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", "--config", str(folder / "gateway.toml")],
                stderr=log,
            )
        try:
            wait_until(
                (folder / "milter.sock").exists,
                "the milter's socket",
                timeout_s=20,
                explain=(folder / "log").read_text,
            )
            wait_until(lambda: greets(inbound), "the proxy's greeting", timeout_s=20)
            yield World(folder, inbound, http, behind, before)
        finally:
            gateway.terminate()
            assert gateway.wait(30) == 0
            behind.stop()
            before.stop()


def greets(port: int) -> bool:
    try:
        with smtplib.SMTP("127.0.0.1", port, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(params=["proxy", "milter"])
def door(
    request: pytest.FixtureRequest, world: World
) -> tuple[Callable[[CorpusCase], tuple[int, str]], PostfixBed]:
    """How to hand a message in, and the Postfix in which it arrives."""
    if request.param == "proxy":
        return world.by_proxy, world.behind
    return world.by_milter, world.before


@pytest.mark.parametrize(
    ("name", "stamped"),
    [
        ("honest-rsa", "dmarc=pass"),
        ("honest-ed25519", "dmarc=pass"),
        ("honest-8bit", "dkim=pass"),
        ("forwarded", "dkim=pass"),
        ("spf-only", "spf=pass"),
        ("spoofed-none", "dmarc=fail"),
        ("author-in-display-name", "dmarc=none"),
        ("forged-results", "dmarc=none"),
        ("arc-trusted", "arc=pass"),
        ("arc-trusted-twice", "arc=pass"),
    ],
)
def test_mail_that_may_pass_arrives_stamped(
    door: tuple[Callable[[CorpusCase], tuple[int, str]], PostfixBed], name: str, stamped: str
) -> None:
    send, postfix = door
    code, text = send(CASES[name])
    assert code == 250, text
    arrived = postfix.wait_for_message("bob").decode("utf-8", "replace")
    header = arrived.split("\n\n")[0]
    ours = re.findall(r"(?im)^authentication-results\s*:\s*(\S+?);", header)
    assert ours.count("mx.example.net") == 1, header
    stamp = re.search(r"(?m)^Authentication-Results: mx\.example\.net;.*\n(?:[ \t].*\n)*", header + "\n")
    assert stamp is not None
    assert stamped in stamp[0]
    assert ("header.from=bank.example" in stamp[0]) == (name == "spf-only")


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("spoofed-reject", "5.7.1 bank.example asks to refuse mail that fails DMARC"),
        ("spoofed-subdomain", "5.7.1 no.such.bank.example asks to refuse mail that fails DMARC"),
        ("body-altered", "5.7.1 honest.example asks to refuse mail that fails DMARC"),
        ("two-from", "5.6.0 the message does not have exactly one From field"),
        ("several-authors", "5.7.1 From does not name exactly one author"),
        ("arc-stranger-on-top", "5.7.1 honest.example asks to refuse mail that fails DMARC"),
        ("arc-altered", "5.7.1 honest.example asks to refuse mail that fails DMARC"),
    ],
)
def test_forged_mail_is_refused_and_not_delivered(
    door: tuple[Callable[[CorpusCase], tuple[int, str]], PostfixBed], name: str, reply: str
) -> None:
    send, postfix = door
    code, text = send(CASES[name])
    assert (code, text[: len(reply)]) == (550, reply)
    for queue in ("incoming", "active", "deferred", "hold", "maildrop"):
        assert not postfix.queue_ids(queue)
    assert not postfix.messages("bob")


def dkimpy_chain(raw: bytes) -> bytes | None:
    """A stranger's word for a chain; the keys are the corpus' and ours."""

    def record(name: bytes, timeout: int = 5) -> bytes | None:
        del timeout
        owner = name.decode().rstrip(".")
        if owner == "rsa._domainkey.forward.example":
            return b"v=DKIM1; p=" + rsa_public().encode()
        answer = asyncio.run(corpus_world().query(owner, RecordType.TXT))
        return answer.records[0] if isinstance(answer, Answer) else None  # type: ignore[return-value]

    word, _, _ = dkim.arc_verify(raw, dnsfunc=record)
    return bytes(word) if word else None


@pytest.mark.parametrize("raw", SIGNED_MAIL.values(), ids=SIGNED_MAIL)
def test_a_seal_arrives_whole(
    door: tuple[Callable[[CorpusCase], tuple[int, str]], PostfixBed], raw: bytes
) -> None:
    """Whatever Postfix does to the message on its way to the mailbox."""
    send, postfix = door
    code, text = send(replace(CASES["spoofed-none"], content=raw))
    assert code == 250, text
    arrived = postfix.wait_for_message("bob").replace(b"\n", b"\r\n")
    assert arrived.count(b"ARC-Seal: i=1; cv=none;") == 1
    assert dkimpy_chain(arrived) == b"pass"


@pytest.mark.parametrize(("name", "sets"), [("arc-trusted", 2), ("arc-trusted-twice", 3)])
def test_a_chain_goes_on_through_us(
    door: tuple[Callable[[CorpusCase], tuple[int, str]], PostfixBed], name: str, sets: int
) -> None:
    send, postfix = door
    assert send(CASES[name])[0] == 250
    arrived = postfix.wait_for_message("bob").replace(b"\n", b"\r\n")
    assert b"ARC-Seal: i=%d; cv=pass; a=rsa-sha256; d=forward.example;" % sets in arrived
    assert dkimpy_chain(arrived) == b"pass"


def test_suspicious_mail_is_marked_by_the_proxy(world: World) -> None:
    code, text = world.by_proxy(CASES["spoofed-quarantine"])
    assert code == 250, text
    arrived = world.behind.wait_for_message("bob").decode()
    assert re.search(r"(?m)^X-Gateway-Quarantine: rule=dmarc-quarantine; id=", arrived)


def test_suspicious_mail_is_held_by_the_milter(world: World) -> None:
    code, text = world.by_milter(CASES["spoofed-quarantine"])
    assert code == 250, text
    (held,) = world.before.held_messages()
    assert b"X-Gateway-Quarantine: rule=dmarc-quarantine" in held.content
    assert not world.before.messages("bob")


def test_an_unknown_user_is_refused_at_once_in_postfix_own_words(world: World) -> None:
    case = CASES["honest-rsa"]
    code, text = hand_in(
        world.inbound,
        ip=case.ip,
        helo=case.helo,
        mail_from=case.mail_from,
        raw=case.raw,
        recipient="nobody@example.net",
    )
    assert code == 550
    assert text.startswith("5.1.1 <nobody@example.net>: Recipient address rejected: User unknown")


def test_postfix_is_told_the_real_client(world: World) -> None:
    case = CASES["honest-rsa"]
    assert world.by_proxy(case)[0] == 250
    world.behind.wait_for_message("bob")
    world.behind.wait_for_log(rf"client=unknown\[{re.escape(case.ip)}\]")


def test_content_goes_to_postfix_in_one_chunk(world: World) -> None:
    assert world.by_proxy(CASES["honest-rsa"])[0] == 250
    world.behind.wait_for_message("bob")
    replies = [line for line in world.metrics() if line.startswith("gateway_downstream_replies_total{")]
    assert [line for line in replies if 'command="message"' in line]
    assert not [line for line in replies if 'command="data"' in line]


def test_postfix_finds_nothing_improper_in_our_manners(world: World) -> None:
    assert world.by_proxy(CASES["honest-rsa"])[0] == 250
    world.behind.wait_for_message("bob")
    assert "improper command" not in world.behind.log()


def test_strangers_cannot_relay(world: World) -> None:
    case = CASES["spoofed-none"]
    for recipient in (
        "x@elsewhere.example",
        "x%elsewhere.example@other.example",
        "@example.net:x@elsewhere.example",
        '"x@example.net"@elsewhere.example',
    ):
        code, text = hand_in(
            world.inbound,
            ip=case.ip,
            helo=case.helo,
            mail_from=case.mail_from,
            raw=case.raw,
            recipient=recipient,
        )
        assert code == 550, f"{recipient}: {text}"


def test_downstream_away_is_temporary_and_nothing_is_lost(world: World) -> None:
    case = CASES["honest-rsa"]
    world.behind.stop()
    try:
        code, _ = hand_in(world.inbound, ip=case.ip, helo=case.helo, mail_from=case.mail_from, raw=case.raw)
        assert code in {421, 451}
    finally:
        world.behind.launch()
    assert world.by_proxy(case)[0] == 250
    assert b"Subject: honest-rsa" in world.behind.wait_for_message("bob")


def test_swaks_as_a_postmaster_would(world: World) -> None:
    done = subprocess.run(
        [
            *("swaks", "--server", f"127.0.0.1:{world.inbound}", "--from", "ann@lenient.example"),
            *("--to", RECIPIENT, "--helo", "client.example", "--body", "hello"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert b"dmarc=fail" in world.behind.wait_for_message("bob")
