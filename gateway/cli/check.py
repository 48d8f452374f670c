"""`gateway check`: judge saved messages as the running gateway would, and say why."""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final

from gateway.cli.errors import UsageFault
from gateway.cli.show import Case, show_for_people, show_for_programs
from gateway.cli.wiring import Judging, build_engine, build_resolver
from gateway.dns.zone import ZoneError, ZoneResolver
from gateway.engine import Engine
from gateway.explain import explain
from gateway.mail.address import Mailbox, parse_domain, parse_mailbox, parse_path
from gateway.mail.author import find_author
from gateway.mail.envelope import Envelope, IpAddress, Listener, Recipient, Session, unmapped
from gateway.mail.errors import ParseError
from gateway.mail.message import Message
from gateway.ops.config import ArcSettings, DkimSettings, DnsSettings, PolicySettings
from gateway.ops.config.load import load_config
from gateway.ops.text import printable
from gateway.policy import load_rules
from gateway.verdict import Disposition

MAX_FILE_BYTES: Final = 256 * 1024 * 1024
AUTHSERV_ID: Final = "gateway.invalid"
"""Who stamps where nobody said who we are; a name that can never be somebody's (RFC 6761 §6.4)."""

EXIT_STATUS: Final = {
    Disposition.ACCEPT: 0,
    Disposition.QUARANTINE: 10,
    Disposition.DEFER: 11,
    Disposition.REJECT: 12,
}
"""Of several messages, the highest."""

NO_CLIENT: Final = IPv6Address("::")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """What was asked on the command line; None: not said."""

    messages: Sequence[str]
    client_ip: str | None = None
    helo: str | None = None
    mail_from: str | None = None
    recipients: Sequence[str] = ()
    config: Path | None = None
    zone: Path | None = None
    rules: str | None = None
    authserv_id: str | None = None
    now: str | None = None
    as_json: bool = False
    with_reasons: bool = True


def run_check(request: CheckRequest) -> int:
    """Judge and print; give the exit status.

    Raises:
        UsageFault: an argument that cannot be used.
        ConfigError, RuleError: a file that cannot be.
    """
    client = _client(request.client_ip)
    judging = prepare_judging(request)
    messages = [(name, _read_message(name)) for name in request.messages]

    async def judge_all() -> list[Case]:
        engine = build_engine(judging, client_known=client is not None)
        try:
            return [await _judge(engine, request, client, case) for case in messages]
        finally:
            if not isinstance(judging.resolver, ZoneResolver):
                await judging.resolver.aclose()

    cases = asyncio.run(judge_all())
    if request.as_json:
        show_for_programs(cases)
    else:
        show_for_people(cases, with_reasons=request.with_reasons)
    return max(EXIT_STATUS[case.verdict.disposition] for case in cases)


def prepare_judging(request: CheckRequest) -> Judging:
    """The config's parts, with the command line's over them."""
    dns, policy, dkim, arc = DnsSettings(), PolicySettings(), DkimSettings(), ArcSettings()
    authserv_id = AUTHSERV_ID
    if request.config is not None:
        settings = load_config(request.config, os.environ, look_at_files=False).settings
        dns, policy, dkim, arc = settings.dns, settings.policy, settings.dkim, settings.arc
        authserv_id = settings.authserv_id
    if request.zone is not None:
        dns = dns.model_copy(update={"zone_file": request.zone})
    if request.authserv_id is not None:
        authserv_id = _authserv_id(request.authserv_id)
    try:
        resolver = build_resolver(dns)
    except OSError as error:
        raise UsageFault(f"{dns.zone_file}: cannot be read: {error.strerror}") from None
    except ZoneError as error:
        raise UsageFault(
            "\n".join(f"{dns.zone_file}:{fault.line}: {fault.message}" for fault in error.faults)
        ) from None
    clock = time.time if request.now is None else _fixed(_instant(request.now))
    return Judging(
        resolver=resolver,
        rules=load_rules(request.rules or policy.rules),
        authserv_id=authserv_id,
        dns=dns,
        policy=policy,
        dkim=dkim,
        arc=arc,
        clock=clock,
    )


async def _judge(
    engine: Engine, request: CheckRequest, client: IpAddress | None, named: tuple[str, Message]
) -> Case:
    name, message = named
    session = Session(
        id="check",
        listener=Listener.CHECK,
        client_ip=client or NO_CLIENT,
        helo=request.helo,
        esmtp=True,
    )
    envelope = Envelope(
        id="check",
        session=session,
        mail_from=reverse_path(request.mail_from, message),
        recipients=tuple(Recipient(mailbox=_recipient(text)) for text in request.recipients),
        smtputf8=True,
    )
    started = time.perf_counter()
    verdict = await engine.judge(envelope, message)
    return Case(
        name=name,
        client_known=client is not None,
        envelope=envelope,
        message=message,
        author=find_author(message),
        verdict=verdict,
        explanation=explain(envelope, verdict, client_known=client is not None),
        seconds=time.perf_counter() - started,
    )


def _read_message(name: str) -> Message:
    try:
        if name == "-":
            content = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageFault(f"{printable(name)}: cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise UsageFault(f"{printable(name)}: is over {MAX_FILE_BYTES} bytes")
    return Message.from_file(content)


def _client(text: str | None) -> IpAddress | None:
    if text is None:
        return None
    try:
        return unmapped(ip_address(text))
    except ValueError:
        raise UsageFault(
            f"--ip {printable(text)}: is not an address; write 192.0.2.1 or 2001:db8::1"
        ) from None


def reverse_path(text: str | None, message: Message) -> Mailbox | None:
    """As given, else what the delivering server noted in Return-Path (RFC 5321 §4.4), else the null path."""
    if text is None:
        noted = message.positions(b"return-path")
        if len(noted) != 1:
            return None
        try:
            return parse_path(message.unfolded(noted[0]), smtputf8=True)
        except ParseError:
            return None
    if text in {"", "<>"}:
        return None
    return _mailbox("--mail-from", text)


def _recipient(text: str) -> Mailbox | None:
    return None if text.strip("<>").lower() == "postmaster" else _mailbox("--rcpt", text)


def _mailbox(option: str, text: str) -> Mailbox:
    try:
        return parse_mailbox(text.removeprefix("<").removesuffix(">"))
    except ParseError as error:
        raise UsageFault(
            f'{option} {printable(text)}: {error}; write it like user@example.net, or "<>"'
        ) from None


def _authserv_id(text: str) -> str:
    try:
        return parse_domain(text)
    except ParseError as error:
        raise UsageFault(
            f"--authserv-id {printable(text)}: {error}; write a host name: mx.example.net"
        ) from None


def _instant(text: str) -> float:
    """Seconds since the epoch, from those or from ISO 8601; without a zone it is UTC."""
    if text.isascii() and text.isdigit() and len(text) <= 12:  # noqa: PLR2004 - beyond is no date
        return float(text)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise UsageFault(
            f"--now {printable(text)}: write 2026-05-01T12:00:00Z, or seconds since 1970"
        ) from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _fixed(instant: float) -> Callable[[], float]:
    return lambda: instant
