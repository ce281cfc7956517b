"""`pgtlsproxy status`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    import ssl

DEFAULT_URL: Final = "http://127.0.0.1:9643"

TIMEOUT_SECONDS: Final = 10.0

MAX_OCTETS: Final = 16 << 20
"""How long an answer may be."""

DAY_SECONDS: Final = 86_400
SOON_DAYS: Final = 7


class _Unreachable(Exception):
    """There is no answer, or none that is understood. Says why, and what to do."""


@click.command(context_settings={"max_content_width": 100})
@click.option("--url", default=DEFAULT_URL, show_default=True, help="Where the proxy serves metrics.")
@click.option("--ca", metavar="FILE", help="Who vouches for its certificate; the system's roots without.")
@click.option("--cert", metavar="FILE", help="The certificate to show, of a CA of status.ssl_ca_file.")
@click.option("--key", metavar="FILE", help="Its private key; in the same file without.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, for machines.")
@click.option(
    "--probe",
    type=click.Choice(["livez", "readyz"]),
    help="Only ask whether it lives, or is ready; say nothing.",
)
def status(
    url: str, ca: str | None, cert: str | None, key: str | None, *, as_json: bool, probe: str | None
) -> int:
    """Say what a running proxy does: sessions, certificates, the last reload, workers.

    It needs `status: {listen: "127.0.0.1:9643"}` in its configuration. Exit status: 0 it has answered,
    1 it cannot be reached, or --probe was answered no.

    \b
    Example:
      pgtlsproxy status
      pgtlsproxy status --probe readyz
      pgtlsproxy status --url https://10.0.0.5:9643 --ca ca.crt --cert me.crt --key me.key
    """  # noqa: D301 - \b is click's mark for text that it must not fill
    from pgtlsproxy.identity import printable

    try:
        if probe is not None:
            _ask(url, f"/{probe}", ca, cert, key)
            return 0
        found = _status(_ask(url, "/status", ca, cert, key))
        if as_json:
            click.echo(json.dumps(found))
        else:
            _show(found)
    except _Unreachable as error:
        click.echo(f"pgtlsproxy status: {printable(url)}: {printable(str(error))}", err=True)
        return 1
    except (KeyError, TypeError, ValueError, AttributeError):
        click.echo(f"pgtlsproxy status: {printable(url)}: what answers is no pgtlsproxy", err=True)
        return 1
    return 0


# --- Asking ---------------------------------------------------------------------------------------------


def _ask(url: str, path: str, ca: str | None, cert: str | None, key: str | None) -> bytes:
    """What is answered with 200."""
    import http.client
    from urllib.parse import urlsplit

    try:
        place = urlsplit(url)
        host, port = place.hostname, place.port
    except ValueError as error:
        raise _Unreachable(f"no address: {error}") from None
    if place.scheme not in {"http", "https"} or not host:
        raise _Unreachable(f"write http://HOST:PORT or https://HOST:PORT, as in {DEFAULT_URL}")
    if place.scheme == "http":
        if ca or cert or key:
            raise _Unreachable("--ca, --cert and --key are for https")
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    else:
        context = _context(ca, cert, key)
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=context)
    try:
        connection.request("GET", path, headers={"Accept": "application/json"})
        reply = connection.getresponse()
        body = reply.read(MAX_OCTETS)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "verify_message", None) or getattr(error, "strerror", None) or str(error)
        raise _Unreachable(f"{reason}. Does it run, and is status.listen set to this address?") from None
    finally:
        connection.close()
    if reply.status != http.client.OK:
        raise _Unreachable(f"answers {reply.status}: {body[:200].decode(errors='replace').strip()}")
    return body


def _status(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict) or "generation" not in found:
        raise _Unreachable("what answers is no pgtlsproxy")
    return found


def _context(ca: str | None, cert: str | None, key: str | None) -> ssl.SSLContext:
    import ssl

    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key)
    except OSError as error:
        files = ", ".join(name for name in (ca, cert, key) if name)
        raise _Unreachable(f"{files}: {error.strerror or error}") from None
    return context


# --- Showing --------------------------------------------------------------------------------------------


def _show(found: Mapping[str, Any]) -> None:
    from pgtlsproxy.cli.tables import print_table

    now = datetime.now(UTC)
    state = "stopping" if found["stopping"] else "ready" if found["ready"] else "not ready"
    colour = "green" if found["ready"] else "red"
    workers = int(found["workers"])
    age = _duration(now.timestamp() - found["started_at"])
    click.echo(
        f"{_text('pgtlsproxy', found['version'])}: {click.style(state, fg=colour, bold=True)}, "
        f"{workers} worker{'s' if workers != 1 else ''}, up {age}"
    )
    _show_reload(found, now)
    rows = [list(_session_row(name, entry)) for name, entry in found["sessions"].items()]
    print_table("Sessions", ("listener", "active", "ok", "others, by outcome"), rows)
    certificates = sorted(found["certificates"], key=lambda entry: float(entry["not_after"]))
    if certificates:
        rows = [list(_certificate_row(entry, now)) for entry in certificates]
        print_table("Certificates and revocation lists", ("what", "whose", "days left", "until"), rows)
    for entry in certificates:
        days = (entry["not_after"] - now.timestamp()) / DAY_SECONDS
        if days < SOON_DAYS:
            word = "has run out" if days < 0 else f"runs out in {max(days, 0):.1f} days"
            what = f"{_text(entry['owner'], entry['name'])} {word}"
            click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {what}")


def _show_reload(found: Mapping[str, Any], now: datetime) -> None:
    last = found["last_reload"]
    ago = _duration(now.timestamp() - last["success_at"])
    click.echo(f"generation {int(found['generation'])}, last loaded whole {ago} ago")
    if last["successful"]:
        return
    kept = ", ".join(_text(unit) for unit in last["failed"])
    why = f"keeps its old content: {kept}" if kept else "not everything could be taken"
    label = click.style("the last reload failed:", fg="red", bold=True)
    click.echo(f"{label} {why}; the log says why (config_mistake), and so does `pgtlsproxy check`")


def _session_row(name: str, entry: Mapping[str, Any]) -> Iterator[str]:
    total = {str(outcome): int(count) for outcome, count in entry["total"].items()}
    yield _text(name)
    yield str(int(entry["active"]))
    yield str(total.pop("ok"))
    yield ", ".join(f"{_text(outcome)} {count}" for outcome, count in total.items() if count)


def _certificate_row(entry: Mapping[str, Any], now: datetime) -> Iterator[str]:
    until = datetime.fromtimestamp(float(entry["not_after"]), UTC)
    yield _text(entry["owner"])
    yield _text(entry["name"])
    yield str((until - now).days)
    yield f"{until:%Y-%m-%d %H:%M} UTC"


def _text(*words: object) -> str:
    from pgtlsproxy.identity import printable

    return " ".join(printable(str(word)) for word in words)


def _duration(seconds: float) -> str:
    for length, unit in ((DAY_SECONDS, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(seconds, 0):.0f} s"
