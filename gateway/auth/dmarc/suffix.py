"""The public suffix list, as DMARC used it before RFC 9989: kept only to count where the tree walk answers differently.

Nothing is decided by it. While the world moves from one method to the other, the number tells a postmaster whether that
matters for the mail that he gets (RFC 9989 Appendix C.3).
"""

from functools import lru_cache
from typing import Final

from publicsuffixlist import PublicSuffixList

_MAX_CACHED: Final = 4096  # ours: two names of at most 253 bytes each, so three megabytes at the very most


class SuffixList:
    """The list that the `publicsuffixlist` package carries. It is read when first asked, once per process."""

    def load(self) -> None:
        """Read it now: 50 to 80 ms, for which mail should not wait."""
        _load()

    def organizational_domain(self, domain: str) -> str:
        """One label below the public suffix (RFC 7489 §3.2); the domain itself where it is a public suffix."""
        return _organizational_domain(domain)


@lru_cache(maxsize=1)
def _load() -> PublicSuffixList:
    return PublicSuffixList()


@lru_cache(maxsize=_MAX_CACHED)
def _organizational_domain(domain: str) -> str:
    private: str | None = _load().privatesuffix(domain)
    return private or domain
