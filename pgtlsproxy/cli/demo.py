"""`pgtlsproxy demo`."""

from __future__ import annotations

import click


@click.command(context_settings={"max_content_width": 100})
@click.option("--keep", is_flag=True, help="Leave everything running until Ctrl-C, and say what to try.")
def demo(*, keep: bool) -> int:
    """See it work: a throw-away PostgreSQL and CA, the proxy in all three deployments, and real psql.

    Ends by itself, leaves nothing running and no files. Exit status: 0 all as it should be, 1 not.

    \b
    Example:
      pgtlsproxy demo
      pgtlsproxy demo --keep
    """  # noqa: D301 - \b is click's mark for text that it must not fill
    import signal

    from rich.console import Console
    from rich.text import Text

    from pgtlsproxy.demo.installations import PostgresFailed
    from pgtlsproxy.demo.output import OutputEnded
    from pgtlsproxy.demo.stage import staged
    from pgtlsproxy.demo.tour import NotAsExpected, Tour

    console = Console(highlight=False)

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)  # ends it as Ctrl-C does, cleaning up
    try:
        console.print("Starting PostgreSQL with TLS, a CA, and the proxy ...")
        with staged() as stage:
            tour = Tour(stage, console)
            tour.walk()
            console.print()
            console.print(Text("All as it should be.", style="bold green"))
            if keep:
                console.print(f"Everything is in {stage.folder} and runs until Ctrl-C. Try:")
                for line in tour.lines_to_try():
                    console.print(Text(f"  {line}", style="cyan"), soft_wrap=True)
                signal.pause()
    except NotAsExpected as error:
        console.print(Text(f"Not as expected: {error}", style="bold red"))
        return 1
    except (PostgresFailed, OutputEnded, TimeoutError) as error:
        console.print(Text(f"The demo cannot be shown: {error}", style="bold red"))
        return 1
    return 0
