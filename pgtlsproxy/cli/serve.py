"""`pgtlsproxy serve`."""

from __future__ import annotations

import sys

import click

from pgtlsproxy.cli.reporting import print_mistakes
from pgtlsproxy.errors import ConfigError


@click.command(context_settings={"max_content_width": 100})
@click.option("-c", "--config", "path", required=True, metavar="FILE", help="The configuration, a YAML file.")
def serve(path: str) -> int:
    """Run the proxy until SIGTERM or SIGINT. Changed files are reloaded, at once on SIGHUP.

    On SIGUSR2 another process takes its place, with what is installed and configured by then.

    Told to end, it accepts no more, ends idle sessions, and lets transactions end within
    drain_timeout. Told again, it ends at once.

    Events go to stderr, one a line. Exit status: 0 ended as told, 1 the configuration cannot be used
    or an address is taken, 3 ended as told, and sessions were cut that were not idle, 70 a bug, or no
    worker starts.

    \b
    Example:
      pgtlsproxy serve -c /etc/pgtlsproxy/pgtlsproxy.yaml
    """  # noqa: D301 - \b is click's mark for text that it must not fill
    if sys.platform != "linux":
        click.echo("pgtlsproxy serve needs Linux.", err=True)
        return 1
    from pgtlsproxy.observability.logs import queued_log
    from pgtlsproxy.observability.stream import open_lock
    from pgtlsproxy.proxy.handover import take_what_is_given
    from pgtlsproxy.proxy.orders import Descriptor
    from pgtlsproxy.proxy.reading import read
    from pgtlsproxy.proxy.supervisor import make_table, supervise

    try:
        given = take_what_is_given()
    except ConfigError as error:
        print_mistakes(error.mistakes)
        return 1
    report = print_mistakes if given.predecessor is None else given.predecessor.say_failed
    files = read(path, serves=True)
    settings = files.settings
    if settings is None:
        report(files.mistakes)
        return 1
    table, lock = make_table(settings), open_lock()
    try:
        with queued_log(settings.log.format, settings.log.level, lock=lock) as logger:
            return supervise(files, settings, table, Descriptor(lock), logger, given)
    except ConfigError as error:
        report(error.mistakes)
        return 1
