"""The DMARC verdict on one message (RFC 9989 §5.3): does the author domain stand behind it, and if not, what then?

A pass needs one proof: an SPF or a DKIM pass for a domain in alignment with the author's. A fail needs certainty: where a
lookup that did not come about could have been that proof, the result is `temperror`, because no DNS failure may refuse
mail for good (§5.3.6). A failure that could not have changed anything changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gateway.auth.dmarc.record import UnusableRecord
from gateway.auth.dmarc.suffix import SuffixList
from gateway.auth.dmarc.walk import Absent, Discovery, TreeWalk
from gateway.auth.results import (
    Alignment,
    DkimResult,
    DkimStatus,
    DmarcPolicy,
    DmarcRecord,
    DmarcResult,
    DmarcStatus,
    Problem,
    SpfIdentity,
    SpfResult,
    SpfStatus,
)
from gateway.auth.trouble import problem_of
from gateway.dns.resolver import Missing, NotFound, RecordType, Resolver, Temporary
from gateway.mail.author import Author, AuthorFault, NoAuthor
from gateway.mail.value import replace

_FAULTS: Final = {
    AuthorFault.NO_FROM: Problem.DMARC_NO_AUTHOR,
    AuthorFault.NO_AUTHOR: Problem.DMARC_NO_AUTHOR,
    AuthorFault.SEVERAL_FROM: Problem.DMARC_SEVERAL_FROM,
    AuthorFault.SEVERAL_AUTHORS: Problem.DMARC_SEVERAL_AUTHORS,
    AuthorFault.UNCLEAR: Problem.DMARC_AUTHOR_UNCLEAR,
    AuthorFault.DOMAIN_INVALID: Problem.DMARC_AUTHOR_DOMAIN,
    AuthorFault.AMBIGUOUS_MESSAGE: Problem.DMARC_MESSAGE_AMBIGUOUS,
}

_ONE_LEVEL_BELOW: Final = {  # RFC 9989 §4.7, t=y
    DmarcPolicy.REJECT: DmarcPolicy.QUARANTINE,
    DmarcPolicy.QUARANTINE: DmarcPolicy.NONE,
    DmarcPolicy.NONE: DmarcPolicy.NONE,
}

_STRICTNESS: Final = tuple(DmarcPolicy)


async def check_dmarc(
    author: Author | NoAuthor,
    spf: SpfResult | None,
    dkim: Sequence[DkimResult],
    resolver: Resolver,
    *,
    suffix_list: SuffixList | None = None,
) -> DmarcResult:
    """Evaluate DMARC for one message.

    Args:
        author: who the From field says wrote it.
        spf: the MAIL FROM evaluation; any other identity is not counted (RFC 9989 §4.4.2).
        dkim: one result per signature; their number is bounded by whoever verified them.
        resolver: each name is asked at most once for this message.
        suffix_list: where given, `suffix_list_differs` is filled in, if an organizational domain was found out.
    """
    if isinstance(author, NoAuthor):
        return await _without_author(author, resolver)
    author_domain = author.mailbox.domain.lower()
    if not author_domain or author_domain[0] == "[":  # an address literal has no DNS: nobody can vouch for it
        return DmarcResult(status=DmarcStatus.PERMERROR, problem=Problem.DMARC_AUTHOR_DOMAIN)
    walk = TreeWalk(resolver)
    found = await walk.discover(author_domain)
    if isinstance(found, Temporary):  # whether DMARC applies at all is not known
        problem = problem_of(found.trouble)
        return DmarcResult(status=DmarcStatus.TEMPERROR, author_domain=author_domain, problem=problem)
    result = _discovered(author_domain, found, suffix_list)
    record = result.record
    if record is None:
        return result
    proofs = _Proofs(author_domain, record, walk)
    await proofs.collect(spf, dkim)
    if proofs.spf_aligned or proofs.dkim_aligned is not None:
        # Whether the name exists (`np`) would take a query, and nothing will be applied: it sends mail, so it does.
        requested = _policy(record, author_domain, exists=True)
        return replace(
            result,
            status=DmarcStatus.PASS,
            requested=requested,
            spf_aligned=proofs.spf_aligned,
            dkim_aligned=proofs.dkim_aligned,
        )
    if proofs.undecided:
        return replace(result, status=DmarcStatus.TEMPERROR, problem=proofs.problem)
    return await _fail(result, record, resolver)


async def _without_author(author: NoAuthor, resolver: Resolver) -> DmarcResult:
    """Never a pass; but what the strictest of the domains in sight asks for is told to the rules.

    Deviation: RFC 9989 §4.4.1 leaves such messages to the receiver. Unless their domains' wishes are known, a second author
    would be a way round p=reject (docs/decisions/0002).
    """
    walk = TreeWalk(resolver)
    strictest = DmarcResult(status=DmarcStatus.PERMERROR, problem=_FAULTS[author.fault])
    for domain in author.domains:
        found = await walk.discover(domain)
        if isinstance(found, Temporary):
            return DmarcResult(status=DmarcStatus.TEMPERROR, problem=problem_of(found.trouble))
        result = _discovered(domain, found, None)
        if result.record is None:
            continue
        failed = await _fail(result, result.record, resolver)
        if failed.status is DmarcStatus.TEMPERROR:
            return replace(strictest, status=failed.status, problem=failed.problem)
        if _STRICTNESS.index(failed.applied) > _STRICTNESS.index(strictest.applied):
            strictest = replace(strictest, requested=failed.requested, applied=failed.applied)
    if author.unread:  # the domain that was to be hidden may stand behind those that were read
        return replace(strictest, requested=DmarcPolicy.REJECT, applied=DmarcPolicy.REJECT)
    return strictest


def _discovered(author_domain: str, found: Discovery, suffix_list: SuffixList | None) -> DmarcResult:
    """The result as far as discovery alone determines it; without a `record` it is final."""
    status, problem = DmarcStatus.NONE, None
    record: DmarcRecord | None = None
    match found.record:
        case DmarcRecord():
            record = found.record
        case UnusableRecord():  # RFC 9989 §9.2: an improperly formatted record; §4.10.1: no policy is applied
            status, problem = DmarcStatus.PERMERROR, Problem.DMARC_SYNTAX
        case Absent.SEVERAL:
            problem = Problem.DMARC_SEVERAL_RECORDS
        case Absent.NONE:
            pass
    organizational_domain = found.organizational_domain
    return DmarcResult(
        status=status,
        author_domain=author_domain,
        organizational_domain=organizational_domain,
        record=record,
        suffix_list_differs=(
            None
            if suffix_list is None or organizational_domain is None
            else suffix_list.organizational_domain(author_domain) != organizational_domain
        ),
        problem=problem,
    )


async def _fail(result: DmarcResult, record: DmarcRecord, resolver: Resolver) -> DmarcResult:
    """Turn an unproven result into a fail with its policy, or into a temperror where the policy cannot be known."""
    author_domain = result.author_domain or ""
    exists = True
    if _policy(record, author_domain, exists=False) is not _policy(record, author_domain, exists=True):
        # RFC 9989 §3.2.13: only NXDOMAIN is non-existence. CNAME, because any other type would follow an alias and
        # report its target's absence as this name's.
        outcome = await resolver.query(author_domain, RecordType.CNAME)
        if isinstance(
            outcome, Temporary
        ):  # §5.3.6: a query that is needed and fails leaves no policy to apply
            return replace(result, status=DmarcStatus.TEMPERROR, problem=problem_of(outcome.trouble))
        exists = not (isinstance(outcome, NotFound) and outcome.missing is Missing.NXDOMAIN)
    requested = _policy(record, author_domain, exists=exists)
    applied = _ONE_LEVEL_BELOW[requested] if record.testing else requested
    return replace(result, status=DmarcStatus.FAIL, requested=requested, applied=applied)


def _policy(record: DmarcRecord, author_domain: str, *, exists: bool) -> DmarcPolicy:
    """Which of `p`, `sp` and `np` speaks for the author domain (RFC 9989 §4.10.1)."""
    if record.domain == author_domain:
        return record.policy
    for_subdomains = record.subdomain_policy or record.policy
    return for_subdomains if exists else record.nonexistent_policy or for_subdomains


@dataclass(slots=True)
class _Proofs:
    """Which authenticated identifiers are in alignment with the author domain (RFC 9989 §4.10.2).

    Attributes:
        undecided: something that could not be looked up might have been a proof; `problem` says what, where known.
    """

    author_domain: str
    record: DmarcRecord
    walk: TreeWalk
    spf_aligned: bool = False
    dkim_aligned: str | None = None
    undecided: bool = False
    problem: Problem | None = None

    async def collect(self, spf: SpfResult | None, dkim: Sequence[DkimResult]) -> None:
        """Look at what has passed, then, only if nothing did, at what could not be checked."""
        # The null path's MAIL FROM identity is postmaster at the HELO name, and counts (§3.2.4, RFC 7208 §2.4).
        mail_from = spf if spf is not None and spf.identity is SpfIdentity.MAIL_FROM else None
        passed = [result.domain.lower() for result in dkim if result.domain and result.counts_for_dmarc]
        if self.author_domain in passed:
            self.dkim_aligned = self.author_domain
        else:
            await self._look_for_signer(passed)
        # SPF is evaluated also where DKIM has decided: the domain's owner is told of both (RFC 9990 §3.1).
        if mail_from is not None and mail_from.status is SpfStatus.PASS and mail_from.domain:
            self.spf_aligned = await self._aligned(mail_from.domain.lower(), self.record.spf_alignment)
        if not self.spf_aligned and self.dkim_aligned is None:
            await self._consider_unchecked(mail_from, dkim)

    async def _look_for_signer(self, domains: Sequence[str]) -> None:
        for domain in dict.fromkeys(domains):
            if await self._aligned(domain, self.record.dkim_alignment):
                self.dkim_aligned = domain
                return

    async def _consider_unchecked(self, mail_from: SpfResult | None, dkim: Sequence[DkimResult]) -> None:
        """A temperror of a domain that is not in alignment could not have helped, and does not hold up a fail."""
        alignment = self.record.dkim_alignment
        unchecked = [
            (result.domain, result.problem, alignment)
            for result in dkim
            if result.status is DkimStatus.TEMPERROR and result.covers_whole_body
        ]
        if mail_from is not None and mail_from.status is SpfStatus.TEMPERROR:
            unchecked.append((mail_from.domain, mail_from.problem, self.record.spf_alignment))
        for domain, problem, mode in unchecked:
            if not self.undecided and domain and await self._aligned(domain.lower(), mode):
                self.undecided, self.problem = True, problem

    async def _aligned(self, domain: str, alignment: Alignment) -> bool:
        """Whether `domain` is certainly in alignment; where that cannot be known, `undecided` is set."""
        if domain == self.author_domain:
            return True
        if alignment is Alignment.STRICT:
            return False
        aligned = await self.walk.in_relaxed_alignment(self.author_domain, domain)
        if isinstance(aligned, Temporary):
            self.undecided, self.problem = True, problem_of(aligned.trouble)
            return False
        return aligned
