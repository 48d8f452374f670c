"""The `gateway` command: its sub-commands, their options and what `--help` says of them.

Nothing but typer is imported before a command runs, so that `--help` and completion are quick.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from gateway import __version__

USAGE_STATUS: Final = 2
"""Exit status where an argument, the config or a rule file cannot be used."""

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
app.add_typer(config_app, name="config")
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

    SIGTERM and SIGINT finish what is in flight and take nothing new. SIGHUP reads rules and certificates again; where a
    new file is faulty, the old one stays in force and the log says so.
    """

    def run() -> int:
        from gateway.cli.serve import run_server

        return run_server(config)

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


def _exit_with(run: Callable[[], int]) -> NoReturn:
    """Run a command; what the operator can mend is said on standard error, without a traceback."""
    from gateway.auth.dkim.key_table import KeyTableError
    from gateway.cli.errors import UsageFault
    from gateway.ops.config.faults import ConfigError
    from gateway.policy import RuleError

    try:
        status = run()
    except (UsageFault, ConfigError, RuleError, KeyTableError) as error:
        print(error, file=sys.stderr)
        status = USAGE_STATUS
    except BrokenPipeError:  # `gateway check … | head`
        sys.stderr.close()
        status = 0
    raise typer.Exit(status)
