import pytest

from gateway.auth.dmarc.suffix import SuffixList


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("example.com", "example.com"),
        ("a.b.example.com", "example.com"),
        ("a.example.co.uk", "example.co.uk"),
        ("co.uk", "co.uk"),  # a public suffix is its own
        ("com", "com"),
        ("a.example.nosuchtld", "example.nosuchtld"),
        ("a.xn--fiq228c5hs", "a.xn--fiq228c5hs"),  # A-labels are in the list too
    ],
)
def test_the_organizational_domain_as_it_was_before_the_tree_walk(domain: str, expected: str) -> None:
    assert SuffixList().organizational_domain(domain) == expected
