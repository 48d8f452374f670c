"""Where reports of TLS that fails are to go (RFC 8460 §3)."""

from gateway.dns.resolver import Answer, RecordType, Temporary
from gateway.doctor.case import Case, unknown
from gateway.doctor.codes import Code
from gateway.doctor.report import Finding, finding
from gateway.publish.records import Purpose
from gateway.tlspolicy.tlsrpt_record import TlsrptRecordError, is_tlsrpt_record, parse_tlsrpt_record


async def examine_tlsrpt(case: Case) -> tuple[Finding, ...]:
    """The record at `_smtp._tls`."""
    outcome = await case.resolver.query(f"_smtp._tls.{case.domain}", RecordType.TXT)
    if isinstance(outcome, Temporary):
        return (unknown("the _smtp._tls record", outcome),)
    records = outcome.records if isinstance(outcome, Answer) else ()
    texts = [text for text in records if isinstance(text, bytes) and is_tlsrpt_record(text)]
    lines = case.to_publish(Purpose.TLSRPT)
    if not texts:
        return (finding(Code.TLSRPT_MISSING, "no TLSRPT record", publish=lines),) if case.hosts else ()
    if len(texts) > 1:
        return (finding(Code.TLSRPT_SEVERAL, f"{len(texts)} records at _smtp._tls.{case.domain}"),)
    try:
        uris = parse_tlsrpt_record(texts[0])
    except TlsrptRecordError as error:
        shown = f'"{texts[0].decode("latin-1")}": {error}'
        return (finding(Code.TLSRPT_INVALID, shown, publish=lines),)
    return (finding(Code.TLSRPT_OK, ", ".join(uris)),)
