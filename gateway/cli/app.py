"""The `gateway` command: its sub-commands, their options and what `--help` says of them.

Nothing but typer is imported before a command runs, so that `--help` and completion are quick.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from gateway import __version__
from gateway.cli.choices import KeyChoice

USAGE_STATUS: Final = 2
"""Exit status where an argument, the config or a rule file cannot be used."""

_MAX_SAYS: Final = 2_000
_CONFIG_FILE: Final = Path("/etc/gateway/gateway.toml")


app = typer.Typer(
    name="gateway",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A mail-flow security gateway: is this message really from whom it says, and may it pass?",
)
config_app = typer.Typer(no_args_is_help=True, help="Look at the config file, or print one to start from.")
policy_app = typer.Typer(no_args_is_help=True, help="Look at rule files.")
keys_app = typer.Typer(no_args_is_help=True, help="DKIM keys that are made and changed without hands.")
app.add_typer(config_app, name="config")
app.add_typer(keys_app, name="keys")
app.add_typer(policy_app, name="policy")


def main() -> None:
    """Run the command line."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"gateway {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    del version


@app.command(
    epilog=(
        "Examples:  gateway check mail.eml --ip 192.0.2.1 --helo mail.example.com --mail-from a@example.com\n\n"
        "gateway check - --ip 192.0.2.1 --zone zone.txt --now 2026-05-01T12:00:00Z < mail.eml\n\n"
        "gateway check *.eml --rules strict --json | jq -r .disposition"
    )
)
def check(
    messages: Annotated[
        list[str], typer.Argument(metavar="MESSAGE…", help="Saved messages (.eml); - is standard input.")
    ],
    *,
    ip: Annotated[
        str | None, typer.Option(help="The client's address. Without it SPF and iprev are not judged.")
    ] = None,
    helo: Annotated[str | None, typer.Option(help="What the client said in HELO or EHLO.")] = None,
    mail_from: Annotated[
        str | None,
        typer.Option(help='The envelope sender; "<>" for a bounce. Without it: the Return-Path field.'),
    ] = None,
    rcpt: Annotated[
        list[str] | None, typer.Option(help="An envelope recipient; may be given several times.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Judge as a gateway with this config file does.")
    ] = None,
    zone: Annotated[
        Path | None, typer.Option(help="Answer DNS from this zone file; names not in it do not exist.")
    ] = None,
    rules: Annotated[str | None, typer.Option(help="Rules: default, monitor, strict, or a file.")] = None,
    authserv_id: Annotated[str | None, typer.Option(help="Our name in Authentication-Results.")] = None,
    now: Annotated[
        str | None, typer.Option(help="Judge signatures as of this time: ISO 8601, or seconds since 1970.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line and message.")] = False,
    reasons: Annotated[bool, typer.Option("--explain/--no-explain", help="Say why, or only what.")] = True,
) -> None:
    """Judge saved messages as the running gateway would, and say why.

    Exit status: 0 accept, 10 quarantine, 11 defer, 12 reject; of several messages the highest. 2: something that was
    given cannot be used.
    """

    def run() -> int:
        from gateway.cli.check import CheckRequest, run_check

        return run_check(
            CheckRequest(
                messages=messages,
                client_ip=ip,
                helo=helo,
                mail_from=mail_from,
                recipients=rcpt or (),
                config=config,
                zone=zone,
                rules=rules,
                authserv_id=authserv_id,
                now=now,
                as_json=as_json,
                with_reasons=reasons,
            )
        )

    _exit_with(run)


@app.command(
    epilog="Examples:  gateway serve\n\ngateway serve --config ./gateway.toml\n\nGATEWAY_LOG__LEVEL=debug gateway serve"
)
def serve(
    config: Annotated[
        Path, typer.Option(envvar="GATEWAY_CONFIG", help="The config file (TOML).")
    ] = _CONFIG_FILE,
) -> None:
    """Run the gateway.

    SIGTERM and SIGINT finish what is in flight and take nothing new. SIGHUP reads rules, keys and certificates again; where a
    new file is faulty, the old one stays in force and the log says so.
    """

    def run() -> int:
        from gateway.cli.serve import run_server

        return run_server(config)

    _exit_with(run)


@keys_app.command(
    "new",
    epilog=(
        "Examples:  gateway keys new example.net\n\n"
        "gateway keys new example.net --algorithm rsa --bits 4096 --selector 2026a\n\n"
        "then publish: gateway keys rotate --publish, or by hand what gateway dns example.net prints"
    ),
)
def keys_new(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="The domain that signs (d=).")],
    *,
    selector: Annotated[
        str | None, typer.Option(help="Its name in the DNS (s=); default: the day and the algorithm.")
    ] = None,
    algorithm: Annotated[
        KeyChoice, typer.Option(help="Ed25519 alone is not enough: many receivers know only RSA.")
    ] = KeyChoice.BOTH,
    bits: Annotated[int, typer.Option(min=2048, max=4096, help="Length of an RSA key.")] = 2048,
    config: Annotated[
        Path, typer.Option(envvar="GATEWAY_CONFIG", help="The config file (TOML), with a section keys.")
    ] = _CONFIG_FILE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Make DKIM keys and say what to publish. They sign when `gateway keys rotate` has seen their records in the DNS."""

    def run() -> int:
        from gateway.cli.keys import NewKeys, run_keys_new

        return run_keys_new(
            NewKeys(
                config=config,
                domain=domain,
                selector=selector,
                algorithm=algorithm,
                bits=bits,
                as_json=as_json,
            )
        )

    _exit_with(run)


@keys_app.command("list", epilog="Examples:  gateway keys list\n\ngateway keys list --json | jq -r .selector")
def keys_list(
    *,
    config: Annotated[
        Path, typer.Option(envvar="GATEWAY_CONFIG", help="The config file (TOML).")
    ] = _CONFIG_FILE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line and key.")] = False,
) -> None:
    """Show every key, its state and since when: made, published, active, retiring, gone."""

    def run() -> int:
        from gateway.cli.keys import run_keys_list

        return run_keys_list(config, as_json=as_json)

    _exit_with(run)


@keys_app.command(
    "rotate",
    epilog=(
        "Examples:  gateway keys rotate --publish    (from a timer; see deploy/systemd/gateway-keys.timer)\n\n"
        "gateway keys rotate example.net --now --publish"
    ),
)
def keys_rotate(
    domain: Annotated[
        str | None, typer.Argument(metavar="[DOMAIN]", help="Only this domain; default: all.")
    ] = None,
    *,
    publish: Annotated[
        bool, typer.Option("--publish", help="Write the records by dynamic update (section dns_update).")
    ] = False,
    start: Annotated[
        bool, typer.Option("--now", help="Begin the next change now, however young the keys are.")
    ] = False,
    config: Annotated[
        Path, typer.Option(envvar="GATEWAY_CONFIG", help="The config file (TOML).")
    ] = _CONFIG_FILE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line and step.")] = False,
) -> None:
    """Take every step from one key to the next whose time has come; run it as often as you like, best every hour.

    A key takes over only when its record is seen in the live DNS. The running gateway takes it up at its next reload.

    Exit status: 0 in order, 10 a record is yours to publish or to take away, 12 something is wrong; 2: nothing could be done.
    """

    def run() -> int:
        from gateway.cli.keys import RotateKeys, run_keys_rotate

        return run_keys_rotate(
            RotateKeys(config=config, domain=domain, publish=publish, start=start, as_json=as_json)
        )

    _exit_with(run)


@app.command(
    epilog=(
        "Examples:  gateway dns example.net > example.net.records\n\n"
        "gateway dns example.net --check\n\n"
        "gateway dns example.net --publish --dry-run\n\n"
        "gateway dns example.net --next-key /etc/gateway/tls/next.pem --publish"
    )
)
def dns(
    domain: Annotated[str, typer.Argument(metavar="DOMAIN", help="One of our domains.")],
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with the live DNS instead of printing.")
    ] = False,
    publish: Annotated[
        bool,
        typer.Option("--publish", help="Write DKIM, MTA-STS, TLSRPT and TLSA records (section dns_update)."),
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="With --publish: MX, SPF and DMARC, too, where there are none.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --publish: show the difference and change nothing.")
    ] = False,
    next_key: Annotated[
        list[Path] | None,
        typer.Option(help="A certificate or key (PEM) that is to come: its TLSA record, too."),
    ] = None,
    reports_to: Annotated[
        str | None, typer.Option(help="Who reads reports of others; default: postmaster@DOMAIN.")
    ] = None,
    config: Annotated[
        Path, typer.Option(envvar="GATEWAY_CONFIG", help="The config file (TOML).")
    ] = _CONFIG_FILE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Print every record that DOMAIN should publish, as a master file with the reasons; compare; or write them.

    Exit status with --check, by the worst: 0 all is well, 10 something cannot be known now, 11 something is missing, 12
    something is wrong. 2: what was given cannot be used, or the zone could not be written.
    """

    def run() -> int:
        from gateway.cli.dns import DnsRequest, run_dns

        return run_dns(
            DnsRequest(
                config=config,
                domain=domain,
                check=check,
                publish=publish,
                everything=everything,
                dry_run=dry_run,
                next_keys=next_key or (),
                reports_to=reports_to,
                as_json=as_json,
            )
        )

    _exit_with(run)


@app.command(
    epilog=(
        "Examples:  gateway trace 0f1e2d3c4b5a.1    (the id in a refusal)\n\n"
        "gateway trace 4VxYz12345    (Postfix's queue-id)\n\n"
        "gateway trace --sender example.com --disposition reject --since 2h\n\n"
        "gateway trace --follow --json | jq -r .rule"
    )
)
def trace(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID|QUEUE-ID|MESSAGE-ID|ADDRESS]…",
            help="What you were told of the message; of several, all must be true of it.",
        ),
    ] = None,
    *,
    sender: Annotated[
        str | None, typer.Option(help='The envelope sender: address or domain; "<>" for bounces.')
    ] = None,
    recipient: Annotated[str | None, typer.Option(help="A recipient: address or domain.")] = None,
    author: Annotated[str | None, typer.Option(help="Who From says wrote it: address or domain.")] = None,
    client: Annotated[str | None, typer.Option(help="The client's address.")] = None,
    disposition: Annotated[
        str | None, typer.Option(help="accept, quarantine, defer or reject: what the rules said.")
    ] = None,
    rule: Annotated[str | None, typer.Option(help="The rule that decided.")] = None,
    since: Annotated[
        str | None, typer.Option(help="90s, 15m, 2h, 3d ago; or ISO 8601, without a zone in UTC.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="The same; before it.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many at most, the newest first.")] = 20,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until you stop it.")
    ] = False,
    config: Annotated[
        Path, typer.Option(envvar="GATEWAY_CONFIG", help="The config file (TOML); its [store] is read.")
    ] = _CONFIG_FILE,
    as_json: Annotated[
        bool, typer.Option("--json", help="All that is kept, one JSON object per line and message.")
    ] = False,
) -> None:
    """Tell a message's whole story, or list those that fit: who sent it, what was found, which rule decided, what the mail server said.

    It reads the store of a gateway that runs, or that has stopped, and changes nothing.

    Exit status: 0 something was found, 1 nothing was. 2: something that was given, or the store, cannot be used.
    """

    def run() -> int:
        from gateway.cli.trace import TraceRequest, run_trace

        return run_trace(
            TraceRequest(
                words=words or (),
                sender=sender,
                recipient=recipient,
                author=author,
                client=client,
                disposition=disposition,
                rule=rule,
                since=since,
                until=until,
                limit=limit,
                follow=follow,
                config=config,
                as_json=as_json,
            )
        )

    _exit_with(run)


@app.command(
    epilog=(
        "Examples:  gateway tls example.com\n\n"
        "gateway tls example.com --connect\n\n"
        "gateway tls user@example.com --config /etc/gateway/gateway.toml\n\n"
        "gateway tls example.com --json | jq -r .level"
    )
)
def tls(
    domain: Annotated[str, typer.Argument(help="A recipient's domain, address, or address literal.")],
    *,
    config: Annotated[
        Path | None,
        typer.Option(help="Decide as a gateway with this config file does, its stored policies included."),
    ] = None,
    zone: Annotated[
        Path | None, typer.Option(help="Answer DNS from this zone file; names not in it do not exist.")
    ] = None,
    connect: Annotated[
        bool, typer.Option("--connect", help="Try every mail server live, as far as TLS; no mail is sent.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say which TLS policy applies to mail for DOMAIN, MTA-STS or DANE, and why, mail server by mail server.

    Exit status: 0 mail can go; 10 it can go, and something is wrong; 11 it waits; 12 it never goes. 2: something that was
    given cannot be used.
    """

    def run() -> int:
        from gateway.cli.tls import TlsRequest, run_tls

        return run_tls(TlsRequest(domain=domain, config=config, zone=zone, connect=connect, as_json=as_json))

    _exit_with(run)


@app.command(
    epilog=(
        "Examples:  gateway doctor example.com\n\n"
        "gateway doctor example.com --connect --selector 2026a --selector s1\n\n"
        "gateway doctor example.net --config /etc/gateway/gateway.toml    (one of ours: held against our config, too)\n\n"
        "gateway doctor example.com --json | jq -r '.findings[] | select(.severity == \"error\") | .code'"
    )
)
def doctor(
    domain: Annotated[str, typer.Argument(help="A domain, or an address in it.")],
    *,
    selector: Annotated[
        list[str] | None,
        typer.Option(help="A DKIM selector (s=) that its mail is signed with; may be given several times."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Use this config's resolvers, and hold our own domains against what it says."),
    ] = None,
    zone: Annotated[
        Path | None, typer.Option(help="Answer DNS from this zone file; names not in it do not exist.")
    ] = None,
    connect: Annotated[
        bool, typer.Option("--connect", help="Try every mail server live, as far as TLS; no mail is sent.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Examine a domain's mail: MX, SPF, DKIM, DMARC, MTA-STS, TLSRPT, DANE, and say what is wrong and what to publish.

    Exit status by the worst finding: 0 in order, 10 warning, 11 something cannot be known now, 12 error. 2: something that was
    given cannot be used. Every code is explained in docs/doctor.md.
    """

    def run() -> int:
        from gateway.cli.doctor import DoctorRequest, run_doctor

        return run_doctor(
            DoctorRequest(
                domain=domain,
                selectors=selector or (),
                config=config,
                zone=zone,
                connect=connect,
                as_json=as_json,
            )
        )

    _exit_with(run)


@config_app.command(
    "check",
    epilog="Examples:  gateway config check\n\ngateway config check ./gateway.toml && systemctl reload gateway",
)
def config_check(
    file: Annotated[Path, typer.Argument(envvar="GATEWAY_CONFIG", help="The config file.")] = _CONFIG_FILE,
) -> None:
    """Report everything that is wrong with a config file and the files that it names. Exit status 2: something is."""

    def run() -> int:
        from gateway.cli.files import run_config_check

        return run_config_check(file)

    _exit_with(run)


@config_app.command("example", epilog="Example:  gateway config example > /etc/gateway/gateway.toml")
def config_example() -> None:
    """Print a config file with every key, its default and what it does."""
    from gateway.ops.config.example import example_config

    sys.stdout.write(example_config())


@policy_app.command(
    "check", epilog="Examples:  gateway policy check\n\ngateway policy check /etc/gateway/rules.toml"
)
def policy_check(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE…]", help="Rule files or shipped names; none: all that are shipped."),
    ] = None,
) -> None:
    """Read rule files and run the examples that each rule carries. Exit status 2: a file is faulty, or an example fails."""

    def run() -> int:
        from gateway.cli.files import run_policy_check

        return run_policy_check(files)

    _exit_with(run)


@policy_app.command(
    "test",
    epilog=(
        "Examples:  gateway policy test --against store --rules strict    (the traces of /etc/gateway/gateway.toml)\n\n"
        "gateway policy test --against /var/log/gateway.log --rules strict\n\n"
        "gateway policy test --against ~/Maildir --config /etc/gateway/gateway.toml\n\n"
        "gateway policy test --against saved.mbox --live default --rules ./stricter.toml --json | jq .changed"
    ),
)
def policy_test(
    *,
    against: Annotated[
        Path,
        typer.Option(
            help="Our own log (JSON, also .gz), a Maildir, a folder of .eml files, an mbox; `store`: the traces that are kept."
        ),
    ],
    rules: Annotated[
        str | None, typer.Option(help="The rules to try; default: [policy] shadow of the config.")
    ] = None,
    live: Annotated[
        str | None,
        typer.Option(help="Compare with these; default: what the log says was done, or the config's rules."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Judge as a gateway with this config file does.")
    ] = None,
    zone: Annotated[
        Path | None, typer.Option(help="Answer DNS from this zone file; names not in it do not exist.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    limit: Annotated[int, typer.Option(min=0, max=1_000, help="Examples of each change.")] = 3,
) -> None:
    """Say what other rules would change, on mail that was judged before: by rule, with examples.

    Exit status: 0 nothing would change, 1 something would; 3 nothing that could be decided would, and not all could. 2:
    something that was given cannot be used.
    """

    def run() -> int:
        from gateway.cli.policy_test import STORE, ReplayRequest, run_policy_test

        return run_policy_test(
            ReplayRequest(
                against=against,
                rules=rules,
                live=live,
                config=_CONFIG_FILE if config is None and str(against) == STORE else config,
                zone=zone,
                as_json=as_json,
                limit=limit,
            )
        )

    _exit_with(run)


def _exit_with(run: Callable[[], int]) -> NoReturn:
    """Run a command; what the operator can mend is said on standard error, without a traceback."""
    from gateway.auth.dkim.key_table import KeyTableError
    from gateway.cli.errors import UsageFault
    from gateway.keys.errors import KeyDirectoryError, PublishError
    from gateway.ops.config.faults import ConfigError
    from gateway.ops.text import printable
    from gateway.policy import RuleError

    try:
        status = run()
    except (UsageFault, ConfigError, RuleError, KeyTableError, KeyDirectoryError, PublishError) as error:
        print(*(printable(line, _MAX_SAYS) for line in str(error).split("\n")), sep="\n", file=sys.stderr)
        status = USAGE_STATUS
    except BrokenPipeError:  # `gateway check … | head`
        sys.stderr.close()
        status = 0
    raise typer.Exit(status)
