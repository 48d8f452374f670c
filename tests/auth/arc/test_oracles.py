"""Foreign sealers' chains verify here, and a foreign verifier agrees about ours (dkimpy)."""

import dkim
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.auth.arc import check_arc
from gateway.auth.results import ArcStatus
from gateway.mail.message import Message
from tests.auth.arc.chains import SEALERS, Custodian, chain, world
from tests.auth.dkim.signing import NOW, rsa_pem, rsa_public
from tests.auth.dkim.test_oracles import MESSAGES

SEALABLE = {name: raw for name, raw in MESSAGES.items() if name != "obsolete name"}
"""dkimpy cannot read `Subject : x`."""


def foreign_status(raw: bytes) -> ArcStatus:
    """dkimpy's word for a message; it says None for a chain that was closed."""
    records = {
        f"rsa._domainkey.{domain}.".encode(): b"v=DKIM1; p=" + rsa_public().encode() for domain in SEALERS
    }
    word, _, _ = dkim.arc_verify(raw, dnsfunc=lambda name, timeout=5: records.get(name))
    return ArcStatus((word or b"fail").decode())


def foreign_seal(raw: bytes, domain: str, before: str, authserv_id: str | None = None) -> bytes:
    """dkimpy takes its `cv=` from Authentication-Results, and from all of one id together: none may be there twice."""
    name = authserv_id or domain
    stamped = f"Authentication-Results: {name}; {before}dmarc=pass header.from=example.org\r\n".encode() + raw
    fields = dkim.arc_sign(
        stamped,
        b"rsa",
        domain.encode(),
        rsa_pem(),
        name.encode(),
        include_headers=[b"from", b"subject"],
        timestamp=int(NOW),
    )
    assert fields
    return b"".join(fields) + stamped


async def our_status(raw: bytes) -> ArcStatus:
    return (await check_arc(Message(raw), world(), now=NOW)).status


@pytest.mark.parametrize("raw", SEALABLE.values(), ids=SEALABLE)
async def test_what_dkimpy_seals(raw: bytes) -> None:
    once = foreign_seal(raw, "lists.example", "")
    twice = foreign_seal(once, "forward.example", "arc=pass; ")

    assert await our_status(once) is ArcStatus.PASS
    result = await check_arc(Message(twice), world(), now=NOW)
    assert (result.status, result.oldest_pass) == (ArcStatus.PASS, 0)
    assert [one.sealer for one in result.sets] == ["forward.example", "lists.example"]


async def test_what_dkimpy_seals_as_broken_is_broken() -> None:
    raw = MESSAGES["7-bit"]

    sealed = foreign_seal(foreign_seal(raw, "lists.example", ""), "forward.example", "arc=fail; ")

    assert await our_status(sealed) is ArcStatus.FAIL
    assert foreign_status(sealed) is ArcStatus.FAIL


@settings(max_examples=60, deadline=None)
@given(
    raw=st.sampled_from([raw for name, raw in SEALABLE.items() if name != "100 KB"]),
    sealers=st.lists(st.sampled_from(SEALERS), min_size=1, max_size=4),
    cut=st.none() | st.integers(0, 2**16),
)
async def test_dkimpy_agrees_about_chains_and_about_altered_ones(
    raw: bytes, sealers: list[str], cut: int | None
) -> None:
    sealed = chain(raw, *(Custodian(domain=domain, signed="from:subject") for domain in sealers))
    if cut is not None:
        where = sealed.index(b"; b=") + 4 + cut % 80  # within the newest seal
        sealed = sealed[:where] + (b"A" if sealed[where : where + 1] != b"A" else b"B") + sealed[where + 1 :]

    assert foreign_status(sealed) is await our_status(sealed)
