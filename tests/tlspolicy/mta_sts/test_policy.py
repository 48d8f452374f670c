import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tlspolicy.mta_sts.policy import (
    MAX_AGE_S,
    MAX_PATTERNS,
    MAX_POLICY_BYTES,
    Mode,
    Policy,
    PolicyError,
    matches,
    parse_policy,
)


def policy(*mx: str, mode: Mode = Mode.ENFORCE, max_age_s: int = 86_400) -> Policy:
    return Policy(mode=mode, mx=mx, max_age_s=max_age_s)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "version: STSv1\r\nmode: enforce\r\nmx: mail.example.com\r\nmx: *.example.net\r\nmax_age: 604800\r\n",
            policy("mail.example.com", "*.example.net", max_age_s=604_800),
        ),
        # erratum 6253: LF alone; no end of the last line
        ("version: STSv1\nmode: testing\nmx: a.example\nmax_age: 86400", policy("a.example", mode=Mode.TESTING)),
        # any order, no blanks, blanks behind
        ("max_age:86400\nmx:a.example \t\nmode:enforce\nversion:STSv1\n", policy("a.example")),
        # unknown keys, repeated keys
        ("version: STSv1\nmode: enforce\nmode: none\nmx: a.example\nfuture: ü, 1\nmax_age: 86400\nmax_age: 0\n", policy("a.example")),
        ("version: STSv1\nmode: none\nmax_age: 86400\n", policy(mode=Mode.NONE)),
        ("version: STSv1\nmode: enforce\nmx: A.Example.\nmx: a.example\nmax_age: 86400\n", policy("a.example")),
        # erratum 7282: more than the maximum is the maximum
        ("version: STSv1\nmode: enforce\nmx: a.example\nmax_age: 9999999999\n", policy("a.example", max_age_s=MAX_AGE_S)),
        ("version: STSv1\nmode: enforce\nmx: a.example\nmax_age: 0\n", policy("a.example", max_age_s=0)),
        ("version: STSv1\n\nmode: enforce\r\n\r\nmx: a.example\nmax_age: 86400\n\n", policy("a.example")),
    ],
)  # fmt: skip
def test_policies_that_are_good(body: str, expected: Policy) -> None:
    assert parse_policy(body.encode()) == expected


GOOD = "version: STSv1\nmode: enforce\nmx: a.example\nmax_age: 86400\n"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>\n<body>Not found</body></html>",
        GOOD.replace("version: STSv1\n", "").encode(),
        GOOD.replace("STSv1", "STSv2").encode(),
        GOOD.replace("STSv1", "stsv1").encode(),
        GOOD.replace("mode: enforce\n", "").encode(),
        GOOD.replace("enforce", "Enforce").encode(),
        GOOD.replace("enforce", "report").encode(),
        GOOD.replace("mx: a.example\n", "").encode(),
        GOOD.replace("max_age: 86400\n", "").encode(),
        GOOD.replace("86400", "-1").encode(),
        GOOD.replace("86400", "1.5").encode(),
        GOOD.replace("86400", "99999999999").encode(),
        GOOD.replace("86400", "٣").encode(),  # a digit, but not 0-9
        GOOD.replace("a.example", "*").encode(),
        GOOD.replace("a.example", "*.").encode(),
        GOOD.replace("a.example", ".example").encode(),
        GOOD.replace("a.example", "*.*.example").encode(),
        GOOD.replace("a.example", "a*.example").encode(),
        GOOD.replace("a.example", "a.*.example").encode(),
        GOOD.replace("a.example", "münchen.example").encode(),  # U-labels are not matched
        GOOD.replace("a.example", "[192.0.2.1]").encode(),
        GOOD.replace("a.example", "a.example, b.example").encode(),
        GOOD.replace("a.example", "a.example match=x").encode(),  # Postfix's syntax
        GOOD.replace("a.example", "a" * 64 + ".example").encode(),
        GOOD.replace("mx:", "mx").encode(),
        GOOD.replace("mx:", " mx:").encode(),
        GOOD.replace("\n", "\r").encode(),
        GOOD.replace("a.example", "a.example\x00").encode(),
        GOOD.encode() + b"\xff",
        GOOD.encode() + b"x: " + b"y" * MAX_POLICY_BYTES,
        GOOD.encode() + b"".join(b"mx: m%d.example\n" % n for n in range(MAX_PATTERNS)),
    ],
)
def test_policies_that_are_not(body: bytes) -> None:
    with pytest.raises(PolicyError):
        parse_policy(body)


@pytest.mark.parametrize(
    ("pattern", "host", "is_match"),
    [
        ("mail.example.com", "mail.example.com", True),
        ("mail.example.com", "a.mail.example.com", False),
        ("*.example.com", "mail.example.com", True),
        ("*.example.com", "a.mail.example.com", False),  # RFC 8461 §4.1: one label
        ("*.example.com", "example.com", False),
        ("*.example.com", ".example.com", False),
        ("*.example.com", "mail.example.com.evil.test", False),
        ("*.example.com", "mailexample.com", False),
        ("example.com", "[192.0.2.1]", False),
    ],
)
def test_which_hosts_a_pattern_covers(pattern: str, host: str, *, is_match: bool) -> None:
    assert matches(pattern, host) is is_match
    assert policy("other.example", pattern).lists(host) is is_match


LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
HOST = st.lists(LABEL, min_size=1, max_size=4).map(".".join)
PATTERN = st.one_of(HOST, HOST.map(lambda host: f"*.{host}"))


@given(
    st.builds(
        lambda mode, mx, max_age_s: Policy(mode=mode, mx=tuple(mx), max_age_s=max_age_s),
        st.sampled_from(Mode),
        st.lists(PATTERN, min_size=1, max_size=5, unique=True),
        st.integers(0, MAX_AGE_S),
    )
)
def test_what_is_written_reads_as_the_same(given_policy: Policy) -> None:
    assert parse_policy(str(given_policy).encode()) == given_policy


@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.sampled_from([*GOOD.splitlines(), "mx: *.b", "x", "mode:", "\r", "é: 1", "max_age: 1\0"])
        ).map(lambda lines: "\n".join(lines).encode()),
    )
)
def test_any_bytes_are_a_policy_or_an_error(body: bytes) -> None:
    try:
        read = parse_policy(body)
    except PolicyError:
        return
    assert all(pattern.isascii() and pattern.isprintable() and " " not in pattern for pattern in read.mx)
