"""The command line: one file a sub-command, each imported only when it is asked for."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import Any, Final

import click

from pgtlsproxy import __version__

EXIT_OK: Final = 0
EXIT_CONFIG: Final = 1
"""The configuration is wrong, a question could not be answered, a port is busy."""
EXIT_USAGE: Final = 64
EXIT_BUG: Final = 70
EXIT_INTERRUPTED: Final = 130

COMMANDS: Final = {
    "serve": "Run the proxy.",
    "check": "Say everything that is wrong with a configuration.",
    "explain": "Say which lines decide about a client, and why.",
    "secrets": "Make lines for scram_secrets_file: of a password, a userlist, or from a server.",
    "certs": "Make, renew, revoke and show certificates.",
    "status": "Say what a running proxy does: sessions, certificates, the last reload, workers.",
    "demo": "See it work: a PostgreSQL, a CA and all three deployments, thrown away afterwards.",
}
"""Sub-commands and their one line, known without importing them."""

HIDDEN: Final = frozenset({"worker", "status_page"})
"""What people do not call."""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS and cmd_name not in HIDDEN:
            return None
        command = getattr(importlib.import_module(f"pgtlsproxy.cli.{cmd_name}"), cmd_name)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001
    if not value or ctx.resilient_parsing:
        return
    import cryptography
    import OpenSSL

    from pgtlsproxy.tls.openssl import library_version

    click.echo(f"pgtlsproxy {__version__}")
    click.echo(f"Python {sys.version.split()[0]}, pyOpenSSL {OpenSSL.__version__}, {library_version()}")
    click.echo(f"cryptography {cryptography.__version__}")
    ctx.exit()


@click.group(
    cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version,
              help="Show the versions of pgtlsproxy and of what it stands on.")  # fmt: skip
def cli() -> None:
    """A TLS proxy for PostgreSQL: ends TLS, enforces certificates, pg_hba.conf and pg_ident.conf.

    \b
    Example:
      pgtlsproxy check -c /etc/pgtlsproxy/pgtlsproxy.yaml
    """  # noqa: D301 - \b is click's mark for text that it must not fill


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the status that it documents."""
    if not sys.warnoptions:
        # Libraries warn whoever writes programs, as of odd certificates; stderr is for whoever runs this one.
        warnings.simplefilter("ignore")
    # What is installed beside us has no part in how settings are read, and to look for it takes 10 ms.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    try:
        status: Any = cli.main(args=arguments, prog_name="pgtlsproxy", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_CONFIG)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(EXIT_CONFIG)
    except Exception as error:  # noqa: BLE001 - the process's last boundary
        _report_bug(error)
        sys.exit(EXIT_BUG)
    sys.exit(status if isinstance(status, int) else EXIT_OK)


def _report_bug(error: Exception) -> None:
    import traceback

    click.echo("pgtlsproxy: this is a bug of ours, please report it:", err=True)
    click.echo("".join(traceback.format_exception(error)), err=True)
