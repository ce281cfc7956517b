"""`pgtlsproxy worker`: what `serve` starts, and nobody else."""

from __future__ import annotations

import click


@click.command(hidden=True)
@click.option("--control", type=int, required=True, help="The inherited socket to the supervisor.")
@click.option("--supervisor", type=int, required=True, help="Its process number.")
def worker(control: int, supervisor: int) -> int:
    """Serve sessions for `pgtlsproxy serve`, which starts it."""
    from pgtlsproxy.proxy.worker import work

    return work(control, supervisor)
