"""Events: one JSON object a line with every field, printable whatever came in, and no secret in any form."""

import io
import json
import sys
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from pgtlsproxy.errors import ErrorKind
from pgtlsproxy.identity import Certificate, ClientAddress, OSUser, Secret, printable
from pgtlsproxy.observability.logs import (
    END_FIELDS,
    FOLD_AFTER,
    SESSION_FIELDS,
    RefusalFolder,
    SessionLog,
    configure,
)

HOSTILE = [
    "new\nline", "\x1b[31mred", "nul\x00", "\x7f", "{} %s {0}", '"quoted"', "\\", "\udcff\udcfe", "\u202eright to left",
    "\u2028separator", "[/x]", "x" * 1_000_000, "\x9b31m",
]  # fmt: skip


@pytest.fixture(autouse=True)
def hooks(monkeypatch):
    """`configure` puts its own in their place."""
    for name in ("excepthook", "unraisablehook"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    import threading

    monkeypatch.setattr(threading, "excepthook", threading.excepthook)


def session_log(log_format="json", level="debug"):
    stream = io.StringIO()
    logger = configure(log_format, level, stream)
    return SessionLog(logger, RefusalFolder(logger.info), session="abc", generation=1), stream


def events(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_both_events_have_every_field_and_absent_is_null():
    log, stream = session_log()
    log.allowed()
    log.ended("ok", "the client closed", bytes_from_client=1, bytes_from_backend=2, seconds=0.5)
    decided, ended = events(stream)
    head = ["timestamp", "level", "event"]
    assert list(decided) == [*head, *SESSION_FIELDS]
    assert list(ended) == [*head, *SESSION_FIELDS, *END_FIELDS]
    assert decided["user"] is None
    assert (decided["event"], decided["verdict"]) == ("session_decided", "allowed")
    assert (ended["event"], ended["kind"], ended["bytes_from_backend"]) == ("session_ended", "ok", 2)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_one_event_is_one_printable_line_whatever_a_client_says(text, log_format):
    log, stream = session_log(log_format)
    log.note(user=text, database=text.encode("utf-8", "surrogatepass"), application_name=text, sni=text)
    log.refused("denied", "28000", text)
    written = stream.getvalue()
    assert written.count("\n") == 1
    assert written.rstrip("\n").isprintable()
    assert len(written) < 10_000
    if log_format == "json":
        assert json.loads(written)["user"] == printable(text)


def test_a_field_that_is_not_documented_is_a_bug():
    log, _ = session_log()
    with pytest.raises(KeyError):
        log.note(passwrd="x")


def test_an_operating_system_user_and_a_certificate_are_shown_whole():
    log, stream = session_log()
    log.note_address(ClientAddress(None, None, is_local=True), OSUser(1000, 1000, 7, "web"))
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    log.note_certificate(
        Certificate(
            ("alice",), "CN=alice", "CN=ca", 255, "ab" * 32, moment, moment, ("DNS:a",), issuer_key="cd" * 32
        ),
        verified=True,
    )
    log.allowed()
    (event,) = events(stream)
    assert (event["client_addr"], event["os_user"], event["os_uid"], event["os_pid"]) == (
        "[local]",
        "web",
        1000,
        7,
    )
    assert (event["cert_serial"], event["cert_san"], event["cert_verified"]) == ("ff", ["DNS:a"], True)
    assert (event["cert_issuer"], event["cert_issuer_key"]) == ("CN=ca", "cd" * 32)


def test_identical_refusals_are_folded_and_counted():
    log, stream = session_log()
    folder = log._folder
    for _ in range(FOLD_AFTER + 5):
        log.refused("denied", "28000", "no line")
    folder.flush()
    names = [event["event"] for event in events(stream)]
    assert names == ["session_decided"] * FOLD_AFTER + ["refusals_folded"]
    assert (events(stream)[-1]["folded"], events(stream)[-1]["count"]) == ("session_decided", 5)
    log.refused("denied", "28000", "no line")
    assert events(stream)[-1]["event"] == "session_decided"


SOURCES = {
    "one IPv4 address": (["192.0.2.1"] * 2, ["192.0.2.1"]),
    "two IPv4 addresses": (["192.0.2.1", "192.0.2.2"], []),
    "a network that one IPv6 client has": (["2001:db8::1", "2001:db8::ffff:0:0:2"], ["2001:db8::/64"]),
    "two of those": (["2001:db8::1", "2001:db8:0:1::1"], []),
    "Unix sockets": ([None] * 2, ["[local]"]),
}


@pytest.mark.parametrize(("addresses", "folded"), SOURCES.values(), ids=SOURCES)
def test_a_source_is_what_one_client_can_have_addresses_of(addresses, folded):
    stream = io.StringIO()
    logger = configure("json", "info", stream)
    folder = RefusalFolder(logger.info)
    for number in range(FOLD_AFTER + 2):
        ip = addresses[number % 2]
        log = SessionLog(logger, folder, session="abc", generation=1)
        log.note_address(ClientAddress(ip and ip_address(ip), number, is_local=False), None)
        log.refused("denied", "28000", "no line")
    folder.flush()
    told = [event for event in events(stream) if event["event"] == "refusals_folded"]
    assert [event["client_addr"] for event in told] == folded


def test_what_is_folded_of_one_event_is_not_held_against_another():
    folder = RefusalFolder(lambda *_, **__: None)
    for _ in range(FOLD_AFTER):
        assert folder.admits("session_decided", "192.0.2.1", "no")
    assert not folder.admits("session_decided", "192.0.2.1", "no")
    assert folder.admits("cancel_dropped", "192.0.2.1", "no")


def test_a_probe_is_below_info():
    log, stream = session_log(level="info")
    log.refused("probe", None, "the client closed")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("kind", ErrorKind)
def test_what_a_backend_does_to_sessions_shows_among_warnings_and_what_clients_do_does_not(kind):
    log, stream = session_log(level="warning")
    log.refused(kind, None, "a reason")
    log.ended(kind, "a reason", bytes_from_client=0, bytes_from_backend=0, seconds=0)
    faults = {"unproven", "backend_unreachable", "backend_tls", "backend_protocol", "backend_lost"}
    wanted = ["session_decided", "session_ended"] if kind in faults else []
    assert [event["event"] for event in events(stream)] == wanted
    assert {event["level"] for event in events(stream)} <= {"warning"}


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_traceback_shows_the_value_of_a_variable(log_format):
    log, stream = session_log(log_format)

    def fails(password, secret):
        canary = password.decode() + "-canary"
        raise RuntimeError(f"{secret} {len(canary)}")

    try:
        fails(b"hun" + b"ter2", Secret(b"hun" + b"ter3"))
    except RuntimeError as error:
        log.bug(error)
    written = stream.getvalue()
    assert "RuntimeError" in written
    assert "hunter" not in written


def test_what_python_would_print_becomes_an_event():
    _, stream = session_log()
    try:
        raise RuntimeError("stray")
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    (event,) = events(stream)
    assert (event["event"], event["level"]) == ("bug", "error")


def test_addresses_are_shown_as_people_write_them():
    assert str(ClientAddress(ip_address("::1"), 5, is_local=True)) == "::1"
