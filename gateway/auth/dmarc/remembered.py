"""The DMARC verdict once for many messages: the same author, the same proofs, the same answers of the DNS."""

import time
from collections.abc import Callable, Sequence
from typing import Final

from gateway.auth.dmarc.evaluate import check_dmarc
from gateway.auth.dmarc.suffix import SuffixList
from gateway.auth.results import DkimResult, DmarcResult, SpfResult
from gateway.dns.budget import BudgetedResolver
from gateway.dns.memory import DnsMemory, Watch
from gateway.mail.author import Author, NoAuthor

MAX_ENTRIES: Final = 5_000
"""Each takes about 2 KB, most of it the record; 4 KB at the worst."""

_Key = tuple[object, ...]


class DmarcChecks:
    """`check_dmarc`, remembered.

    Args:
        now: a clock that never goes back, in seconds.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._memory: DnsMemory[_Key, DmarcResult] = DnsMemory(MAX_ENTRIES, now=now)

    async def check(
        self,
        author: Author | NoAuthor,
        spf: SpfResult | None,
        dkim: Sequence[DkimResult],
        resolver: BudgetedResolver,
        *,
        suffix_list: SuffixList | None = None,
    ) -> DmarcResult:
        """See `check_dmarc`."""
        if isinstance(author, NoAuthor):
            return await check_dmarc(author, spf, dkim, resolver, suffix_list=suffix_list)
        key = _key(author, spf, dkim, suffix_list)
        known = self._memory.recall(key, resolver)
        if known is not None:
            return known
        watch = Watch(resolver)
        result = await check_dmarc(author, spf, dkim, watch, suffix_list=suffix_list)
        self._memory.keep(key, result, watch)
        return result


def _key(
    author: Author, spf: SpfResult | None, dkim: Sequence[DkimResult], suffix_list: SuffixList | None
) -> _Key:
    """All of its arguments that the check looks at. The suffix list is the same one always, if there is one."""
    signatures = [(one.domain, one.status, one.covers_whole_body, one.problem) for one in dkim]
    sender = (spf.identity, spf.domain, spf.status, spf.problem) if spf is not None else None
    return (author.mailbox.domain, suffix_list is not None, sender, *signatures)
