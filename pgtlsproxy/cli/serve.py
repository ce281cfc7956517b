"""`pgtlsproxy serve`."""

from __future__ import annotations

import sys

import click

from pgtlsproxy.cli.reporting import print_mistakes
from pgtlsproxy.errors import ConfigError


@click.command(context_settings={"max_content_width": 100})
@click.option("-c", "--config", "path", required=True, metavar="FILE", help="The configuration, a YAML file.")
def serve(path: str) -> int:
    """Run the proxy until SIGTERM or SIGINT; SIGHUP reloads the configuration.

    Events go to stderr, one a line. Exit status: 0 ended as told, 1 the configuration cannot be used
    or an address is taken, 70 a bug.

    \b
    Example:
      pgtlsproxy serve -c /etc/pgtlsproxy/pgtlsproxy.yaml
    """  # noqa: D301 - \b is click's mark for text that it must not fill
    if sys.platform != "linux":
        click.echo("pgtlsproxy serve needs Linux.", err=True)
        return 1
    from pgtlsproxy.observability.logs import queued_log
    from pgtlsproxy.proxy.expiry import judge_expiry
    from pgtlsproxy.proxy.server import serve as run
    from pgtlsproxy.proxy.snapshot import load

    try:
        loaded = load(path)
        log = loaded.snapshot.settings.log
        with queued_log(log.format, log.level) as logger:
            expiry = judge_expiry(loaded.snapshot)
            for warning in (*loaded.warnings, *expiry.expired, *expiry.soon):
                logger.warning("config_warning", warning=str(warning))
            run(loaded.snapshot, logger)
    except ConfigError as error:
        print_mistakes(error.mistakes)
        return 1
    return 0
