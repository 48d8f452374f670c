"""What ends by itself: certificates, and the steps of managed keys."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from gateway.auth.dkim.key import KeyType
from gateway.keys.directory import KeyDirectory
from gateway.keys.making import Order, make_keys
from gateway.keys.model import KeyState, ManagedKey
from gateway.keys.rotation import Schedule
from gateway.ops.expiry import KeyWatch, certificate_end, next_step

NOW = datetime(2026, 11, 24, 6, tzinfo=UTC)
DAY_S = 86_400
SCHEDULE = Schedule(publish_ahead_s=DAY_S, keep_old_s=7 * DAY_S, rotate_every_s=90 * DAY_S)


def days(count: float) -> datetime:
    return NOW + timedelta(days=count)


def test_a_chain_ends_with_its_first_certificate(tmp_path: Path) -> None:
    authority = trustme.CA()
    soon = authority.issue_cert("mx.example.net", not_after=days(10))
    late = authority.issue_cert("mx.example.net", not_after=days(90))
    file = tmp_path / "chain.pem"
    file.write_bytes(late.cert_chain_pems[0].bytes() + soon.cert_chain_pems[0].bytes())
    assert certificate_end(file) == days(10)


@pytest.mark.parametrize("content", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nxx\n"])
def test_what_is_no_certificate_has_no_end(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_bytes(content)
    assert certificate_end(tmp_path / "cert.pem") is None
    assert certificate_end(tmp_path / "missing.pem") is None


def key(**steps: datetime) -> ManagedKey:
    return ManagedKey(
        domain="example.net", selector="a", algorithm=KeyType.ED25519, public="", created=NOW, **steps
    )


@pytest.mark.parametrize(
    ("steps", "due"),
    [
        ({}, days(0)),  # its record should stand there at once
        ({"published": days(1)}, days(2)),
        ({"published": days(1), "active": days(2)}, days(92)),
        ({"published": days(1), "active": days(2), "retiring": days(92)}, days(99)),
        ({"published": days(1), "active": days(2), "retiring": days(92), "gone": days(99)}, None),
    ],
    ids=[
        state.value
        for state in (KeyState.MADE, KeyState.PUBLISHED, KeyState.ACTIVE, KeyState.RETIRING, KeyState.GONE)
    ],
)
def test_when_a_key_leaves_its_state(steps: dict[str, datetime], due: datetime | None) -> None:
    assert next_step(key(**steps), SCHEDULE) == due


def test_a_key_that_is_changed_by_hand_only_is_never_due() -> None:
    by_hand = Schedule(publish_ahead_s=DAY_S, keep_old_s=DAY_S, rotate_every_s=None)
    assert next_step(key(published=NOW, active=NOW), by_hand) is None


def test_the_state_is_read_again_when_another_process_has_changed_it(tmp_path: Path) -> None:
    directory = KeyDirectory(tmp_path / "keys")
    watch = KeyWatch(directory, SCHEDULE)
    assert watch.look() == ()
    with directory.locked():
        make_keys(directory, Order(domain="example.net", algorithms=(KeyType.ED25519,), bits=2048), now=NOW)
    (made,) = watch.look()
    assert (made.domain, made.state, made.due) == ("example.net", KeyState.MADE, NOW)
    directory.state_path.write_text("not a state")
    assert watch.look() == (made,)  # what cannot be read changes nothing
