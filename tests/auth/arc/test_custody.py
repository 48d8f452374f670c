"""Whose word is believed: from the last sealer back, as far as the operator's list goes."""

import pytest

from gateway.auth.arc.custody import dmarc_before, is_trust_unknown, trusted_sets
from gateway.auth.results import ArcResult, ArcSet, ArcStatus, DmarcStatus
from gateway.mail.authentication_results import parse_results

TRUSTED = frozenset({"lists.example", "forward.example"})


def arc(*custodians: tuple[str, str], status: ArcStatus = ArcStatus.PASS) -> ArcResult:
    """Oldest first: sealer, and what it says."""
    sets = [
        ArcSet(instance=number, sealer=sealer, results=parse_results(f"mx.example; {said}"))
        for number, (sealer, said) in enumerate(custodians, start=1)
    ]
    return ArcResult(status=status, sets=tuple(reversed(sets)))


PASS = "dmarc=pass header.from=example.org"
FAIL = "dmarc=fail header.from=example.org"
LIST, FORWARD, EVIL = "lists.example", "forward.example", "evil.example"

CHAINS = {
    "one that is trusted": ([(LIST, PASS)], DmarcStatus.PASS),
    "one that is trusted says fail": ([(LIST, FAIL)], DmarcStatus.FAIL),
    "one that is not": ([(EVIL, PASS)], None),
    "a stranger has sealed last": ([(LIST, PASS), (EVIL, PASS)], None),
    "a stranger has sealed first": ([(EVIL, PASS), (LIST, FAIL)], DmarcStatus.FAIL),
    "a stranger in between": ([(LIST, PASS), (EVIL, PASS), (FORWARD, FAIL)], DmarcStatus.FAIL),
    "the first trusted one altered it": ([(LIST, PASS), (FORWARD, FAIL)], DmarcStatus.PASS),
    "two results, one of them smuggled in": ([(LIST, f"{FAIL}; {PASS}")], None),
    "said of another author": ([(LIST, "dmarc=pass header.from=evil.example")], None),
    "said of nobody": ([(LIST, "dmarc=pass")], None),
    "said of two": ([(LIST, f"{PASS} header.from=evil.example")], None),
    "said of an address": ([(LIST, "dmarc=pass header.from=ann@Example.ORG")], DmarcStatus.PASS),
    "in other letters": ([(LIST, "DMARC=Pass Header.From=EXAMPLE.org")], DmarcStatus.PASS),
    "a word that is no result": ([(LIST, "dmarc=bestguesspass header.from=example.org")], None),
    "nothing of DMARC": ([(LIST, "spf=pass smtp.mailfrom=example.org")], None),
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_dmarc_was(name: str) -> None:
    custodians, expected = CHAINS[name]

    assert dmarc_before(trusted_sets(arc(*custodians), TRUSTED), "example.org") is expected


def test_without_an_author_nobody_vouched_for_him() -> None:
    assert dmarc_before(trusted_sets(arc((LIST, PASS)), TRUSTED), None) is None


@pytest.mark.parametrize("status", [ArcStatus.FAIL, ArcStatus.TEMPERROR, ArcStatus.NONE])
def test_a_chain_that_does_not_pass_has_no_trusted_part(status: ArcStatus) -> None:
    assert not trusted_sets(arc((LIST, PASS), status=status), TRUSTED)


def test_where_the_key_could_not_be_had_trust_is_unknown_if_the_last_sealer_claims_to_be_trusted() -> None:
    assert is_trust_unknown(arc((EVIL, PASS), (LIST, PASS), status=ArcStatus.TEMPERROR), TRUSTED)
    assert not is_trust_unknown(arc((LIST, PASS), (EVIL, PASS), status=ArcStatus.TEMPERROR), TRUSTED)
    assert not is_trust_unknown(arc((LIST, PASS)), TRUSTED)
    assert not is_trust_unknown(arc((LIST, PASS), status=ArcStatus.FAIL), TRUSTED)
    assert not is_trust_unknown(None, TRUSTED)


def test_trust_is_of_the_very_domain() -> None:
    assert not trusted_sets(arc(("sub.lists.example", PASS)), TRUSTED)
