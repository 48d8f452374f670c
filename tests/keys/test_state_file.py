from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.dkim.key import KeyType
from gateway.keys.model import KeyState, ManagedKey
from gateway.keys.state_file import StateError, format_state, parse_state

ED25519 = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="  # RFC 8463 §A.2
RSA = (
    "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J16JYi0Qvx/byYzCNb3W91y3FutAC"
    "DfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB"
)  # RFC 8463 §A.2
NOW = datetime(2026, 11, 24, 6, tzinfo=UTC)
KEY = ManagedKey(
    domain="example.net", selector="2026a", algorithm=KeyType.ED25519, public=ED25519, created=NOW
)
ACTIVE = replace(KEY, published=NOW, active=NOW + timedelta(days=1))

LABELS = st.from_regex(r"\A[a-z0-9_]([a-z0-9_-]{0,20}[a-z0-9])?\Z")


@st.composite
def keys(draw: st.DrawFn) -> ManagedKey:
    taken = draw(st.integers(0, 4))
    given_times = draw(st.lists(st.datetimes(timezones=st.just(UTC)), min_size=taken + 1, max_size=taken + 1))
    times: list[datetime | None] = [*sorted(given_times), *[None] * (4 - taken)]
    algorithm = draw(st.sampled_from(KeyType))
    return ManagedKey(
        domain=".".join(draw(st.lists(LABELS, min_size=1, max_size=4))),
        selector=draw(LABELS),
        algorithm=algorithm,
        public=RSA if algorithm is KeyType.RSA else ED25519,
        created=times[0] or NOW,
        published=times[1],
        active=times[2],
        retiring=times[3],
        gone=times[4],
    )


@given(st.lists(keys(), max_size=5, unique_by=lambda key: key.name))
def test_what_is_written_is_read_back(some: list[ManagedKey]) -> None:
    assert parse_state(format_state(some)) == tuple(some)


@given(
    st.one_of(
        st.text(max_size=200),
        st.lists(
            st.sampled_from(
                [
                    *format_state([ACTIVE]).splitlines(),
                    "created = 0001-01-01T00:00:00+23:00",
                    "key = 1",
                    "[key]",
                    'public = ""',
                    "active = 2026-11-24",
                ]
            ),
            max_size=12,
        ).map("\n".join),
    )
)
def test_any_text_is_keys_or_a_state_error(text: str) -> None:
    try:
        found = parse_state(text)
    except StateError as error:
        assert str(error)  # noqa: PT017 - it is allowed, and must say something
    else:
        assert parse_state(format_state(found)) == found


def test_a_person_can_read_it() -> None:
    text = format_state([ACTIVE])
    assert 'state = "active"' in text
    assert "active = 2026-11-25T06:00:00Z" in text


GOOD = format_state([ACTIVE])
BAD = [
    (GOOD.replace('"active"', '"published"'), "says state = 'published', but its times say 'active'"),
    (GOOD.replace("published = ", "# "), "a step before an earlier one"),
    (GOOD.replace("active = 2026-11-25", "active = 2026-11-20"), "a step before an earlier one"),
    (GOOD.replace('"example.net"', '"../../etc"'), "a domain or selector that cannot be"),
    (GOOD.replace('"example.net"', '"Example.net"'), "a domain or selector that cannot be"),
    (
        GOOD.replace('"2026a"', f'"{"a" * 63}.{"b" * 63}.{"c" * 63}.{"d" * 63}"'),
        "that cannot be",
    ),  # a file's name
    (GOOD.replace('"ed25519"', '"dsa"'), 'neither "rsa" nor "ed25519"'),
    (GOOD.replace('"ed25519"', '"rsa"'), "a public key that cannot be"),
    (GOOD.replace(ED25519, f"{ED25519}; t=y"), "a public key that is not base64"),  # it is put into a record
    (GOOD.replace(ED25519, ""), "a public key that is not base64"),
    (GOOD.replace("created = 2026-11-24T06:00:00Z\n", ""), "no time created"),
    (GOOD.replace("T06:00:00Z", ""), "is not like 2026-11-24T06:00:00Z"),
    (GOOD.replace("selector", "slector"), "an unknown key"),
    (GOOD + GOOD, "twice"),
    ("keys = []", "something else than [[key]] tables"),
    ("key = [1]", "is not a table"),
    ("[[key]", "is not TOML"),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_what_cannot_be_right_is_named(text: str, said: str) -> None:
    with pytest.raises(StateError) as caught:
        parse_state(text)
    assert said in str(caught.value)


def test_the_state_is_the_last_step_taken() -> None:
    later = NOW + timedelta(days=1)
    keys = [
        KEY,
        published := replace(KEY, published=later),
        active := replace(published, active=later),
        retiring := replace(active, retiring=later),
        replace(retiring, gone=later),
    ]
    assert [key.state for key in keys] == list(KeyState)
