"""`pgtlsproxy status_page`: what `serve` starts where there is `status:`, and nobody else."""

from __future__ import annotations

import click


@click.command(name="status_page", hidden=True)
@click.option("--control", type=int, required=True, help="The inherited socket to the supervisor.")
@click.option("--parent", type=int, required=True, help="The supervisor's process number.")
def status_page(control: int, parent: int) -> int:
    """Serve metrics for `pgtlsproxy serve`, which starts it."""
    from pgtlsproxy.proxy.status_page import serve_status

    return serve_status(control, parent)
