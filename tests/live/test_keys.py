"""Keys and records of ours in a real zone: knot takes the updates, unbound shows them to the world, opendkim reads the keys."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dkim
import dns.message
import dns.query
import dns.rdatatype
import pytest

from gateway.auth.dkim.key_table import load_key_table
from gateway.auth.dkim.sign import Signer
from gateway.cli.choices import KeyChoice
from gateway.cli.dns import DnsRequest, run_dns
from gateway.cli.errors import UsageFault
from gateway.cli.keys import NewKeys, RotateKeys, run_keys_new, run_keys_rotate
from gateway.dns.resolver import RecordType
from gateway.keys.directory import KeyDirectory
from gateway.keys.errors import PublishError
from gateway.keys.model import KeyState, ManagedKey
from gateway.keys.rotation import Step
from gateway.keys.signing import signing_entries
from gateway.mail.author import find_author
from gateway.mail.edits import Edits
from gateway.mail.message import Message
from gateway.ops.config import DnsUpdateSettings, HostPort
from gateway.publish.update import Mode, Primary, Wish
from tests.live.dns_bed import TSIG_NAME, TSIG_SECRET, DnsBed
from tests.live.postfix import wait_until

pytestmark = pytest.mark.live

DOMAIN = "signed.test"
START = datetime(
    2026, 11, 24, 6, tzinfo=UTC
)  # the end of the first test is months later; the others have days of their own
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
TESTKEY = shutil.which("opendkim-testkey", path="/usr/sbin:/usr/bin")

CONFIG = """\
authserv_id = "mx.{domain}"
local_domains = ["{domain}"]
[dns]
servers = ["{resolver}"]
[inbound]
listen = ["127.0.0.1:2525"]
downstream = "127.0.0.1:10025"
[keys]
directory = "keys"
publish_ahead_s = 86_400
keep_old_s = 604_800
rotate_every_s = 7_776_000
[mta_sts]
mode = "enforce"
mx = ["mx.{domain}"]
[dns_update]
server = "127.0.0.1:{port}"
tsig_name = "{tsig_name}"
tsig_secret_file = "tsig.secret"
ttl_s = 1
"""


class Site:
    """One gateway's config and keys, and the zone that it may write to."""

    def __init__(self, folder: Path, bed: DnsBed, *, domain: str = DOMAIN) -> None:
        self.bed = bed
        self.domain = domain
        self.config = folder / "gateway.toml"
        self.directory = KeyDirectory(folder / "keys")
        self.configure()

    def configure(self, *, tsig_name: str = TSIG_NAME, secret: str = TSIG_SECRET, port: int = 0) -> None:
        (self.config.parent / "tsig.secret").write_text(f"{secret}\n")
        self.config.write_text(
            CONFIG.format(
                domain=self.domain,
                resolver=self.bed.resolver_address,
                port=port or self.bed.authority_port,
                tsig_name=tsig_name,
            )
        )

    def make_keys(self, algorithm: KeyChoice = KeyChoice.BOTH, *, now: datetime = START) -> None:
        request = NewKeys(
            config=self.config, domain=self.domain, selector=None, algorithm=algorithm, bits=2048
        )
        assert run_keys_new(request, now=now) == 0

    def rotate(self, now: datetime, *, publish: bool = True, start: bool = False) -> int:
        request = RotateKeys(config=self.config, publish=publish, start=start)
        return run_keys_rotate(request, now=now)

    def rotate_until(self, now: datetime, state: KeyState, count: int) -> list[ManagedKey]:
        """Run it, as a timer would, until so many keys are there: what unbound knows of names grows old first."""

        def are_there() -> bool:
            assert self.rotate(now) == 0
            return len(self.keys(state)) == count

        wait_until(are_there, f"{count} keys that are {state}")
        return self.keys(state)

    def keys(self, *states: KeyState) -> list[ManagedKey]:
        return [key for key in self.directory.read() if key.state in states]

    def selectors(self, *states: KeyState) -> list[str]:
        return sorted(key.selector for key in self.keys(*states))

    def texts(self, name: str) -> list[str]:
        """The TXT records that knot has at a name."""
        reply = dns.query.tcp(
            dns.message.make_query(name, "TXT"), "127.0.0.1", port=self.bed.authority_port, timeout=5
        )
        return sorted(
            "".join(string.decode() for string in rdata.strings)
            for rrset in reply.answer
            if rrset.rdtype == dns.rdatatype.TXT
            for rdata in rrset
        )

    def run(self, **wanted: Any) -> int:
        return run_dns(DnsRequest(config=self.config, domain=self.domain, **wanted))

    def signatures_verify(self) -> bool:
        """Whether dkimpy, asking the live DNS, takes every signature that the keys in use make."""
        signer = Signer(load_key_table(signing_entries(self.directory)))
        message = Message(f"From: ann@{self.domain}\r\nSubject: hello\r\n\r\nhello\r\n".encode())
        signed = signer.sign(message, find_author(message), Edits(), now=START.timestamp())
        fields = [f"{field.name}: {field.value}\r\n".encode() for field in signed.fields]
        verifier = dkim.DKIM(b"".join(fields) + message.raw)
        return len(fields) == 2 and all(
            verifier.verify(idx=index, dnsfunc=self._first_text) for index in range(len(fields))
        )

    def _first_text(self, name: bytes, timeout: int = 5) -> bytes | None:
        host, _, port = self.bed.resolver_address.partition(":")
        query = dns.message.make_query(name.decode(), "TXT")
        reply = dns.query.tcp(query, host, port=int(port), timeout=timeout)
        return next((b"".join(rdata.strings) for rrset in reply.answer for rdata in rrset), None)

    def fits(self, key: ManagedKey) -> bool:
        """Whether opendkim-testkey, asking the live DNS, finds the private key's own public key."""
        assert TESTKEY is not None
        folder = self.config.parent
        host, _, port = self.bed.resolver_address.partition(":")
        (folder / "unbound-of-opendkim.conf").write_text(
            "server:\n  do-not-query-localhost: no\n  local-zone: test. nodefault\n  module-config: iterator\n"
            f"forward-zone:\n  name: .\n  forward-addr: {host}@{port}\n"
        )
        (folder / "opendkim.conf").write_text(f"ResolverConfiguration {folder}/unbound-of-opendkim.conf\n")
        done = subprocess.run(
            [
                *(TESTKEY, "-x", str(folder / "opendkim.conf"), "-d", self.domain, "-s", key.selector),
                *("-k", str(self.directory.path_of(key)), "-vv"),
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert "checking key" in done.stderr, done.stderr
        return done.returncode == 0


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DnsBed]:
    zones = {
        DOMAIN: "@ MX 10 mx\nmx A 127.0.0.1\nmta-sts A 127.0.0.1",
        "other.test": '@ TXT "v=spf1 -all"\n_dmarc TXT "v=DMARC1; p=reject"\n_smtp._tls TXT "v=TLSRPTv1; rua=mailto:x@other.test"\n'
        "@ MX 5 mail\nalias._domainkey CNAME elsewhere.test.",
        "hand.test": "@ MX 10 mx",
        "wild.test": '@ MX 10 mx\n* TXT "v=spf1 -all"',
    }
    with DnsBed.running(tmp_path_factory.mktemp("dns"), zones, signed=[DOMAIN]) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, bed: DnsBed) -> Site:
    return Site(tmp_path, bed)


def test_a_rotation_from_end_to_end_needs_no_hands(site: Site) -> None:
    site.make_keys()
    assert site.selectors(KeyState.MADE) == ["20261124-ed25519", "20261124-rsa"]

    # The first keys sign as soon as they are seen: nothing signed before.
    first = site.rotate_until(START, KeyState.ACTIVE, 2)
    for key in first:
        assert site.texts(key.name) == [key.record.decode()]
    assert site.signatures_verify()
    if TESTKEY:
        assert [site.fits(key) for key in first] == [True, False]  # it does not know Ed25519

    # Run as often as one likes: nothing happens until the keys grow old.
    assert site.rotate(START + DAY) == site.rotate(START + 88 * DAY) == 0
    assert site.selectors(*KeyState) == ["20261124-ed25519", "20261124-rsa"]

    # A day before that their successors are published, and seen; they do not sign yet.
    begun = START + 89 * DAY
    site.rotate_until(begun, KeyState.PUBLISHED, 2)
    assert site.rotate(begun + 23 * HOUR) == 0
    assert site.selectors(KeyState.PUBLISHED) == ["20270221-ed25519", "20270221-rsa"]
    assert site.keys(KeyState.ACTIVE) == first

    # After a day they take over, both in one step; the old ones stay published.
    assert site.rotate(begun + DAY) == 0
    assert site.selectors(KeyState.ACTIVE) == ["20270221-ed25519", "20270221-rsa"]
    retiring = site.keys(KeyState.RETIRING)
    assert len(retiring) == 2
    assert site.rotate(begun + 7 * DAY) == 0
    assert all(site.texts(key.name) == [key.record.decode()] for key in retiring)

    # A week later the old ones are revoked, and when the world sees that, their private keys are deleted.
    site.rotate_until(begun + 8 * DAY, KeyState.GONE, 2)
    for key in retiring:
        assert site.texts(key.name) == [f"v=DKIM1; k={key.algorithm}; p="]
        assert not site.directory.has_file(key)

    # Yet another week, and nothing of them is left.
    site.rotate_until(begun + 16 * DAY, KeyState.GONE, 0)
    assert [site.texts(key.name) for key in retiring] == [[], []]
    assert site.selectors(*KeyState) == ["20270221-ed25519", "20270221-rsa"]
    assert site.signatures_verify()


def test_published_records_pass_the_check_and_a_second_time_nothing_changes(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.make_keys(now=START + DAY)
    assert site.run(check=True) == 11
    assert site.run(publish=True, dry_run=True) == 0
    shown = capsys.readouterr().out
    assert "+ _mta-sts.signed.test. TXT" in shown
    assert site.texts("_mta-sts.signed.test") == []
    assert site.run(publish=True, everything=True) == 0
    capsys.readouterr()
    assert site.run(publish=True, everything=True) == 0
    assert "nothing to change" in capsys.readouterr().out
    wait_until(lambda: site.run(check=True) == 0, "the resolver to see all of it")
    capsys.readouterr()
    assert site.run(check=True, as_json=True) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert {one["purpose"] for one in checks} == {
        *("mx", "spf", "dkim", "dmarc", "mta-sts", "mta-sts-host", "tlsrpt"),
    }


def test_what_others_have_written_is_never_overwritten(tmp_path: Path, bed: DnsBed) -> None:
    site = Site(tmp_path, bed, domain="other.test")
    assert site.run(publish=True, everything=True) == 0
    assert site.texts("other.test") == ["v=spf1 -all"]
    assert site.texts("_dmarc.other.test") == ["v=DMARC1; p=reject"]
    assert site.texts("_smtp._tls.other.test") == ["v=TLSRPTv1; rua=mailto:x@other.test"]
    assert len(site.texts("_mta-sts.other.test")) == 1


def test_a_changed_policy_changes_its_id_and_nothing_else(site: Site) -> None:
    assert site.run(publish=True) == 0
    before = site.texts("_mta-sts.signed.test")
    site.config.write_text(site.config.read_text().replace('"enforce"', '"testing"'))
    assert site.run(publish=True) == 0
    after = site.texts("_mta-sts.signed.test")
    assert len(before) == len(after) == 1
    assert before != after
    site.configure()
    assert site.run(publish=True) == 0
    assert site.texts("_mta-sts.signed.test") == before


def test_without_leave_to_write_the_operator_is_told_and_nothing_signs_unseen(
    tmp_path: Path, bed: DnsBed, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site(tmp_path, bed, domain="hand.test")
    site.make_keys(KeyChoice.RSA)
    assert site.rotate(START, publish=False) == 10
    assert "gateway dns hand.test" in capsys.readouterr().out
    (key,) = site.keys(KeyState.MADE)
    bed.change("hand.test", f'@ MX 10 mx\n20261124-rsa._domainkey TXT "v=DKIM1; k=rsa; p={"A" * 40}"')

    def is_seen() -> bool:
        status = site.rotate(START, publish=False)
        return status == 12

    wait_until(is_seen, "the wrong record to be seen")
    assert site.keys(KeyState.MADE) == [key]


def test_another_key_under_the_same_name_is_not_overwritten_by_a_rotation(
    site: Site, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    now = START + 5 * DAY
    site.make_keys(KeyChoice.RSA, now=now)
    site.rotate_until(now, KeyState.ACTIVE, 1)
    second = Site(tmp_path_factory.mktemp("second"), site.bed)
    second.make_keys(KeyChoice.RSA, now=now)
    assert second.rotate(now) == 12
    assert "stands another key" in capsys.readouterr().out
    assert second.keys(KeyState.ACTIVE) == []
    assert site.texts("20261129-rsa._domainkey.signed.test") == [
        key.record.decode() for key in site.keys(KeyState.ACTIVE)
    ]


def test_a_wildcard_is_not_taken_for_a_record(tmp_path: Path, bed: DnsBed) -> None:
    site = Site(tmp_path, bed, domain="wild.test")
    assert site.texts("_mta-sts.wild.test") == ["v=spf1 -all"]
    assert site.run(publish=True, everything=True) == 0
    assert len(site.texts("_mta-sts.wild.test")) == len(site.texts("_smtp._tls.wild.test")) == 1
    assert site.texts("_mta-sts.wild.test")[0].startswith("v=STSv1; ")
    assert site.texts("_dmarc.wild.test")[0].startswith("v=DMARC1; ")
    assert site.texts("elsewhere.wild.test") == ["v=spf1 -all"]


async def test_what_somebody_else_changes_meanwhile_is_not_overwritten(tmp_path: Path, bed: DnsBed) -> None:
    settings = DnsUpdateSettings(
        server=HostPort("127.0.0.1", bed.authority_port),
        tsig_name=TSIG_NAME,
        tsig_secret_file=tmp_path,
        ttl_s=1,
    )
    ours, theirs = Primary(settings, TSIG_SECRET), Primary(settings, TSIG_SECRET)

    def wish(text: bytes, name: str = "race.signed.test") -> Wish:
        return Wish(
            name=name,
            record_type=RecordType.TXT,
            records=(text,),
            mode=Mode.REPLACE,
            is_of_kind=lambda record: record != b"kept",
        )

    async def put(primary: Primary, text: bytes) -> None:
        await primary.write(await primary.plan([wish(text)]))

    begun = await ours.plan([wish(b"ours")])
    await put(theirs, b"theirs")
    with said("somebody else changed it in this moment"):
        await ours.write(begun)
    begun = await ours.plan([wish(b"ours")])
    assert [line for change in begun for line in change.lines()] == [
        '- race.signed.test. TXT "theirs"',
        '+ race.signed.test. TXT "ours"',
    ]
    await put(theirs, b"kept")
    with said("somebody else changed it in this moment"):
        await ours.write(begun)
    await put(ours, b"ours")
    (change,) = await ours.plan([wish(b"ours")])
    assert set(change.before) == {b"ours", b"kept"}
    with said("alias._domainkey.other.test. is an alias of elsewhere.test.: take the CNAME away"):
        await ours.plan([wish(b"ours", "alias._domainkey.other.test")])


@contextmanager
def said(words: str) -> Iterator[None]:
    with pytest.raises((PublishError, UsageFault)) as caught:
        yield
    assert words in str(caught.value)


def test_what_goes_wrong_is_said_with_what_to_do(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = TSIG_SECRET.replace("Z2F0", "aaaa")
    site.configure(secret=wrong)
    with said("compare name, algorithm and secret of the TSIG key"):
        site.run(publish=True)
    site.configure(tsig_name="nobody")
    with said("does not take the TSIG key nobody."):
        site.run(publish=True)
    site.configure(tsig_name="stranger")
    with said("let this TSIG key update the zone there"):
        site.run(publish=True)
    site.configure(secret="not base64!")
    with said("write it alone, in base64"):
        site.run(publish=True)
    site.configure(port=1)
    with said("cannot be reached by TCP"):
        site.run(publish=True)
    # A rotation goes on as far as it can, says so, and puts nothing into use.
    site.make_keys(now=START + 9 * DAY)
    assert site.rotate(START + 9 * DAY) == 12
    out = capsys.readouterr().out
    assert f"{Step.FAULT:<10}" in out
    assert "cannot be reached by TCP" in out
    assert site.keys(KeyState.ACTIVE) == []


def test_a_zone_that_the_server_does_not_hold_is_named(tmp_path: Path, bed: DnsBed) -> None:
    site = Site(tmp_path, bed, domain="no.such-zone.test")
    with said("for _mta-sts.no.such-zone.test."):  # knot refuses the key there: it has no zone below the root
        site.run(publish=True)
