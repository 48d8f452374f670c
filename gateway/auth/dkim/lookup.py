"""Asking for the public keys of signatures (RFC 6376 §6.1.2): each once for a message, and the good ones once for many."""

from gateway.auth.dkim.key import KeyRecord, select_key
from gateway.auth.dkim.tags import DkimError
from gateway.auth.results import Problem
from gateway.auth.trouble import problem_of
from gateway.dns.budget import BudgetedResolver
from gateway.dns.memory import DnsMemory, Watch
from gateway.dns.resolver import Answer, NotFound, RecordType, Resolver, Temporary

KeyMemory = DnsMemory[str, KeyRecord]
"""The keys of many messages, by the names at which they are published."""


class KeyLookup:
    """The keys of one message, each asked for once.

    Args:
        resolver: asked.
        memory: of keys that earlier messages have asked for; only what keeps an account can make use of it.
    """

    __slots__ = ("_known", "_memory", "_resolver")

    def __init__(self, resolver: Resolver, memory: KeyMemory | None = None) -> None:
        self._resolver = resolver
        self._memory = memory
        self._known: dict[str, KeyRecord | Problem] = {}

    async def fetch(self, name: str) -> KeyRecord | Problem:
        """The key at this name, or why there is none to be had."""
        known = self._known.get(name)
        if known is None:
            known = self._recall(name) or await self._ask(name)
            self._known[name] = known
        return known

    def _recall(self, name: str) -> KeyRecord | None:
        resolver, memory = self._resolver, self._memory
        return (
            memory.recall(name, resolver)
            if memory is not None and isinstance(resolver, BudgetedResolver)
            else None
        )

    async def _ask(self, name: str) -> KeyRecord | Problem:
        resolver, memory = self._resolver, self._memory
        if memory is None or not isinstance(resolver, BudgetedResolver):
            return await _ask(name, resolver)
        watch = Watch(resolver)
        found = await _ask(name, watch)
        if isinstance(found, KeyRecord):
            memory.keep(name, found, watch)
        return found


async def _ask(name: str, resolver: Resolver) -> KeyRecord | Problem:
    match await resolver.query(name, RecordType.TXT):
        case NotFound():
            return Problem.DKIM_KEY_MISSING
        case Temporary(trouble=trouble):
            return problem_of(trouble)
        case Answer(records=records):
            try:
                return select_key([record for record in records if isinstance(record, bytes)])
            except DkimError as error:
                return error.problem
