import time
from email.utils import getaddresses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.author import Author, AuthorFault, NoAuthor, find_author
from gateway.mail.message import Message

NO_FROM, SEVERAL_FROM = AuthorFault.NO_FROM, AuthorFault.SEVERAL_FROM
NO_AUTHOR, SEVERAL = AuthorFault.NO_AUTHOR, AuthorFault.SEVERAL_AUTHORS
UNCLEAR, DOMAIN, AMBIGUOUS = AuthorFault.UNCLEAR, AuthorFault.DOMAIN_INVALID, AuthorFault.AMBIGUOUS_MESSAGE


def author_of(value: str | bytes) -> Author | NoAuthor:
    content = value.encode() if isinstance(value, str) else value
    return find_author(Message(b"From: " + content + b"\r\nTo: x@example.net\r\n\r\nbody\r\n"))


@pytest.mark.parametrize(
    ("value", "address", "name"),
    [
        ("a@x.example", "a@x.example", None),
        ("A.b@X.Example", "A.b@x.example", None),
        ("<a@x.example>", "a@x.example", None),
        ("Ann <a@x.example>", "a@x.example", "Ann"),
        ("Ann<a@x.example>", "a@x.example", "Ann"),
        ("John Q. Public <a@x.example>", "a@x.example", "John Q. Public"),  # obsolete, and everywhere
        ('"Doe, John" <a@x.example>', "a@x.example", "Doe, John"),
        (r'"John \"JD\" Doe" <a@x.example>', "a@x.example", 'John "JD" Doe'),
        ('"a@bank.example" <a@x.example>', "a@x.example", "a@bank.example"),  # deceives people, not readers
        ('"<a@bank.example>" <a@x.example>', "a@x.example", "<a@bank.example>"),
        ("=?utf-8?Q?J=C3=B6rg?= <a@x.example>", "a@x.example", "Jörg"),
        ("=?utf-8?B?SsO2?= =?iso-8859-1?Q?rg_X?= <a@x.example>", "a@x.example", "Jörg X"),
        ("=?utf-8?B?YUBiYW5rLmV4YW1wbGU=?= <a@x.example>", "a@x.example", "a@bank.example"),
        ("=?zlib?B?YQ==?= <a@x.example>", "a@x.example", "=?zlib?B?YQ==?="),  # no charset
        ("a@x.example <a@x.example>", "a@x.example", "a@x.example"),  # no quotes, but one address only
        ("[Tracker] Ann <a@x.example>", "a@x.example", "[Tracker] Ann"),
        ("Ann [Sales dept.] <a@x.example>", "a@x.example", "Ann [Sales dept.]"),
        ("Ann\u00a0Doe <a@x.example>", "a@x.example", "Ann\u00a0Doe"),
        ("=?utf-8?Q?Ann_=3Ca=40X.example=3E?= <a@x.example>", "a@x.example", "Ann <a@X.example>"),
        ("=?utf-8?B?Y?= <a@x.example>", "a@x.example", "=?utf-8?B?Y?="),
        ("Jörg <a@x.example>", "a@x.example", "Jörg"),  # RFC 6532
        ("jörg@bücher.example", "jörg@xn--bcher-kva.example", None),
        ("a@x.example (Ann)", "a@x.example", None),  # the way of the 1980s
        ("(a (b (c))) Ann (d) Lee (e) < a@x.example > (f)", "a@x.example", "Ann Lee"),
        ("\r\n Ann\r\n\t<a@x.example>", "a@x.example", "Ann"),
        ("a@x.example.", "a@x.example", None),  # one name, with or without its root
        ("Team: a@x.example;", "a@x.example", None),  # RFC 6854
        ("a..b.@x.example", '"a..b."@x.example', None),
        ("Mr. O'Brien/Sales #1 <a@x.example>", "a@x.example", "Mr. O'Brien/Sales #1"),
    ],
)
def test_one_author(value: str, address: str, name: str | None) -> None:
    author = author_of(value)
    assert isinstance(author, Author), author
    assert (str(author.mailbox), author.display_name, author.position) == (address, name, 0)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("", NO_AUTHOR),
        (" (nobody)", NO_AUTHOR),
        ("undisclosed:;", NO_AUTHOR),
        ("<>", NO_AUTHOR),
        ("a@x.example, b@y.example", SEVERAL),
        ("a@x.example,a@x.example", SEVERAL),
        ("Team: a@x.example, b@x.example;", SEVERAL),
        ("a@bank.example <a@x.example>", UNCLEAR),  # some readers stop at the first address
        ("<a@bank.example> <a@x.example>", UNCLEAR),
        ("<a@bank.example><a@x.example>", UNCLEAR),
        ("Ann <a@x.example> Lee", UNCLEAR),
        ("<a@bank.example>, junk", UNCLEAR),
        ("junk, <a@x.example>", UNCLEAR),
        (",a@x.example", UNCLEAR),  # the obsolete empty member
        ("a@x.example,", UNCLEAR),
        ("a@x.example,,b@y.example", UNCLEAR),
        ("<a@x.example", UNCLEAR),
        ("a@x.example>", UNCLEAR),
        ("<<a@x.example>>", UNCLEAR),
        ('"Ann <a@x.example>', UNCLEAR),
        ("(Ann a@x.example", UNCLEAR),
        ("Ann) <a@x.example>", UNCLEAR),
        ("<@bank.example:a@x.example>", UNCLEAR),  # a source route: some read the first domain
        ("<@x.example,@y.example:a@bank.example>", UNCLEAR),
        ("a@bank.example@x.example", UNCLEAR),
        ("a@(c)x.example", UNCLEAR),
        ("a(c)@x.example", UNCLEAR),
        ("<a(b)@x.example>", UNCLEAR),
        ("a @x.example", UNCLEAR),
        ("a@ x.example", UNCLEAR),
        ("a b@x.example", UNCLEAR),
        ("a@x.example b", UNCLEAR),
        ("a@x .example", UNCLEAR),
        ('"a@bank.example"@x.example', UNCLEAR),  # split at the first @ it is another domain
        ('"a@bank.example,b"@x.example', UNCLEAR),
        ('"a b"@x.example', UNCLEAR),
        ('""@x.example', UNCLEAR),
        ('"a"b@x.example', UNCLEAR),
        (r'"a\"<b@bank.example>, "<a@x.example>', UNCLEAR),  # ends early for readers without escapes
        ("(a@bank.example) a@x.example", UNCLEAR),
        ("(<a@bank.example>) <a@x.example>", UNCLEAR),
        ("=?utf-8?Q?a=40bank.example?=@x.example", UNCLEAR),  # Mailsploit: shown decoded
        ("=?utf-8?Q?a=40bank.example=00?= <a@x.example>", UNCLEAR),  # cut off at the NUL
        ('"=?utf-8?Q?a=40bank.example=0A?=" <a@x.example>', UNCLEAR),
        ("(=?utf-8?Q?=00?=) a@x.example", UNCLEAR),
        ("=?utf-8?Q?Doe, J?= <a@x.example>", UNCLEAR),  # two members, or one
        ("a\uff20bank.example@x.example", UNCLEAR),  # a full-width @
        ("a@bank.example: b@x.example;", UNCLEAR),
        (": a@x.example;", UNCLEAR),
        ("Team: a@x.example", UNCLEAR),
        ("a@x.example;", UNCLEAR),
        ("Team: a@x.example; b@y.example", UNCLEAR),
        ("Team: a@x.example;, b@y.example", UNCLEAR),
        ("A: B: a@x.example;;", UNCLEAR),
        ("root", UNCLEAR),
        ("@x.example", UNCLEAR),
        ("a@", UNCLEAR),
        ("a\x07@x.example", UNCLEAR),
        ("Ann\x1b <a@x.example>", UNCLEAR),
        ("Ann\u2028 <a@x.example>", UNCLEAR),
        ("a@x.example\r\n ", UNCLEAR),  # a line of blanks ends the header section for some
        ("Ann\r\n \r\n <a@x.example>", UNCLEAR),
        ("a@x.example, <a@x.example>", SEVERAL),
        ("A@x.example <a@x.example>", UNCLEAR),
        ("a@x.example a@x.example <a@x.example>", UNCLEAR),
        ("[a@bank.example] <a@x.example>", UNCLEAR),
        ("[ a@bank.example ] <a@x.example>", UNCLEAR),
        ("[<a@bank.example>] <a@x.example>", UNCLEAR),
        ("[(] <a@bank.example> [)] <a@x.example>", UNCLEAR),
        ("a\u00a0b@x.example", UNCLEAR),
        ("=?utf-8?Q?=3Ca=40bank.example=3E?= <a@x.example>", UNCLEAR),  # decoded first, then parsed
        (b"a@x.ex\xe4mple", DOMAIN),  # in which charset?
        (b"J\xf6rg@x.example", UNCLEAR),
        (b"=?utf8?Q?a=40bank.example=00?= <a@x.example>", UNCLEAR),  # no registered name, but readers know it
        (b"\xc0\xbca@bank.example\xc0\xbe <a@x.example>", UNCLEAR),  # overlong angle brackets
        ("a" * 300 + "@x.example", UNCLEAR),
        ("(" + "x" * 20_000 + ") a@x.example", UNCLEAR),
        ("a@x..example", DOMAIN),
        ("a@-x.example", DOMAIN),
        ("a@[192.0.2.1]", DOMAIN),
        ("a@x_\u2603\u200d.example", DOMAIN),
        ("a@x%00.example", DOMAIN),
        ("a@" + "x" * 64 + ".example", DOMAIN),
        ("Ann\0 <a@x.example>", AMBIGUOUS),
        ("Ann\n <a@x.example>", AMBIGUOUS),
        ("Ann\r <a@x.example>", AMBIGUOUS),
    ],
)
def test_no_author(value: str | bytes, fault: AuthorFault) -> None:
    author = author_of(value)
    assert isinstance(author, NoAuthor), author
    assert author.fault is fault


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        (b"To: a@x.example\r\n", NO_FROM),
        (b"", NO_FROM),
        (b"Sender: a@x.example\r\nResent-From: a@x.example\r\n", NO_FROM),
        (b"From: a@x.example\r\nFrom: b@y.example\r\n", SEVERAL_FROM),
        (b"From: a@x.example\r\nfROM: a@x.example\r\n", SEVERAL_FROM),
        (b"From: a@x.example\r\nFrom : b@y.example\r\n", SEVERAL_FROM),
        (b"From: a@x.example\r\nFrom\t:b@y.example\r\n", SEVERAL_FROM),
        (b"From: a@x.example\r\nFrom\0: b@y.example\r\n", AMBIGUOUS),
        (b"\xef\xbb\xbfFrom: a@x.example\r\nFrom: b@y.example\r\n", AMBIGUOUS),
        (b" From: a@x.example\r\nFrom: b@y.example\r\n", AMBIGUOUS),
        (b"From: a@x.example\r\nFrom\r\n : b@y.example\r\n", AMBIGUOUS),
        (b"From: a@x.example\r\nno field\r\nX: b\r\n", AMBIGUOUS),
    ],
)
def test_which_field_is_from(header: bytes, fault: AuthorFault) -> None:
    author = find_author(Message(header + b"\r\nbody\r\n"))
    assert isinstance(author, NoAuthor)
    assert author.fault is fault


def test_sender_and_resent_from_do_not_count() -> None:
    author = find_author(
        Message(b"Sender: s@y.example\r\nResent-From: r@z.example\r\nFrom: a@x.example\r\n\r\n")
    )
    assert isinstance(author, Author)
    assert (author.mailbox.domain, author.position) == ("x.example", 2)


def test_the_log_is_told_the_domains_that_were_seen() -> None:
    author = find_author(Message(b"From: a@X.example\r\nFrom: b@y.example <c@z.example>\r\n\r\n"))
    assert author == NoAuthor(SEVERAL_FROM, ("x.example", "y.example", "z.example"))
    many = author_of(", ".join(f"a@d{at}.example" for at in range(100)))
    assert many == NoAuthor(SEVERAL, tuple(f"d{at}.example" for at in range(5)), unread=True)


@pytest.mark.parametrize(
    "value",
    [
        "=?utf-8?q?a=40bank.example?=",  # shown decoded
        "=?utf-8?B?PGFAYmFuay5leGFtcGxlPg==?= <a@x.example>, b@x.example",
        "=?x-unknown?q?a=40bank.example?=",
        "=?utf-8?Q?a=40bank.example=0A?= <a@x.example>",
        "a@(x)bank.example",
        "a@((x) y) bank.example",
        "a@ bank.example",
        "a@\r\n bank.example",
        "a@bank .example",
        "a@bank. example",
        "a@bank(x).example",
        "a@bank..example",
        "a@.bank.example.",
        'a@"bank.example"',
        "a@[bank.example]",
        "a@bank\\.example",
        "a@<bank.example>",
        "a@bank.example'",
        "a@bank.example/",
        "a@bank.example\x07",
        "a@bank.example\ufffd",
        b"a@bank.example\xff",
        "a\uff20bank.example",
        "a@b\u00adank.example b",
        "<@x.example:a@bank.example>",
        "a@x.example (a@bank.example)",
    ],
)
def test_what_another_reader_may_take_for_the_domain_is_seen(value: str | bytes) -> None:
    author = author_of(value)
    assert isinstance(author, NoAuthor), author
    assert "bank.example" in author.domains


@pytest.mark.parametrize(
    "header",
    [
        b"X: y\nFrom: a@bank.example\r\nFrom: b@x.example\r\n",
        b"X: y\rfrom : a@bank.example\r\nFrom: b@x.example\r\n",
        b"X: y\nFrom:\n a@bank.example\nTo: b\r\nFrom: b@x.example\r\n",
        b"\xef\xbb\xbfFrom: a@bank.example\r\nFrom: b@x.example\r\n",
        b" From: a@bank.example\r\nFrom: b@x.example\r\n",
        b"From\r\n : a@bank.example\r\nFrom: b@x.example\r\n",
        b"From\xa0: a@bank.example\r\nFrom: b@x.example\r\n",
        b"From: b@x.example\r\nno field\r\nFrom: a@bank.example\r\n",
    ],
)
def test_from_is_seen_where_only_another_reader_sees_a_field(header: bytes) -> None:
    author = find_author(Message(header + b"\r\nbody\r\n"))
    assert isinstance(author, NoAuthor)
    assert "bank.example" in author.domains


@pytest.mark.parametrize(
    "value", ["(" + "x" * 20_000 + ") a@x.example", ", ".join(f"a@d{at}.example" for at in range(6))]
)
def test_what_is_not_read_is_not_forgotten(value: str) -> None:
    author = author_of(value)
    assert isinstance(author, NoAuthor)
    assert author.unread


def test_a_bare_line_end_in_the_body_moves_no_header_field() -> None:
    author = find_author(Message(b"From: a@x.example\r\n\r\nbody\nFrom: b@y.example\r\n"))
    assert isinstance(author, Author)


def test_bytes_of_an_unnamed_charset_may_stand_in_a_name() -> None:
    author = author_of(b"J\xf6rg <a@x.example>")
    assert isinstance(author, Author)
    assert (author.mailbox.text, author.display_name) == ("a@x.example", "J\ufffdrg")


@pytest.mark.parametrize("piece", [" ", "@", "(", "@ ", "=?", "a@b.", "\ufdfa", '"', "@("])
def test_a_hostile_from_is_cheap(piece: str) -> None:
    header = b"From: " + (piece * 16_000).encode()[:16_000] + b"\r\n"
    started = time.process_time()
    find_author(Message(header * 5 + b"\r\n"))
    assert time.process_time() - started < 1


PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            ["a@x.example", "b@y.example", "Ann", "ü", "=?utf-8?Q?=40?=", "=?", "\r\n ", "\r", "\0"]
        ),
        st.sampled_from('<>@"\\,:;() .[]'),
    ),
    max_size=12,
).map("".join)


@settings(deadline=None, max_examples=400)
@given(PIECES)
def test_where_we_see_an_author_another_reader_sees_no_other(value: str) -> None:
    author = author_of(value)
    if isinstance(author, NoAuthor):
        return
    library = [address for _, address in getaddresses([value.replace("\r\n", "")]) if "@" in address]
    # The library joins what we keep apart only where there are quotes; it knows no U-labels.
    if '"' not in value and "ü" not in value:
        seen = [address.lower().rstrip(".") for address in library]
        # One that finds the same address twice may say it twice, or give up.
        assert set(seen) == {f"{author.mailbox.local_part}@{author.mailbox.domain}".lower()} or (
            not seen and value.lower().count(author.mailbox.text.lower()) > 1
        )


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_never_raises(value: bytes) -> None:
    assert isinstance(find_author(Message(b"From:" + value + b"\r\n\r\n")), Author | NoAuthor)


@pytest.mark.parametrize(
    "unit",
    [
        "(",
        ")",
        "<",
        ">",
        '"',
        "\\",
        "a",
        "@",
        ",",
        ":",
        ";",
        "a@b,",
        "=?utf-8?Q?a?= ",
        "=?",
        "\r\n ",
        " ",
        "ü",
        "[",
        '"a"',
    ],
)
def test_hostile_values_take_less_than_a_second(unit: str) -> None:
    for size in (15_000, 1_000_000):
        started = time.process_time()
        assert isinstance(author_of(unit * (size // len(unit))), Author | NoAuthor)
        assert time.process_time() - started < 1
