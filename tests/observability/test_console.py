"""In a terminal an event is a line that a person reads from the left: what, who, from where, why."""

import io
import re
from datetime import datetime
from ipaddress import ip_address

import pytest

from pgtlsproxy.identity import ClientAddress
from pgtlsproxy.observability import console
from pgtlsproxy.observability.console import ConsoleLines
from pgtlsproxy.observability.logs import SESSION_FIELDS, RefusalFolder, SessionLog, configure

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.fixture
def stream():
    return io.StringIO()


@pytest.fixture
def logger(stream):
    return configure("console", "info", stream)


@pytest.fixture
def session(logger):
    log = SessionLog(logger, RefusalFolder(logger.info), session="970b", generation=1)
    log.note_address(ClientAddress(ip_address("10.0.0.7"), 51234, is_local=False), None)
    log.note(user="alice", database="shop", listener="central", hba_file="pg_hba.conf", hba_line=2)
    return log


def test_a_refusal_says_who_from_where_and_why_before_anything_else(session, stream):
    session.refused("denied", "28000", "no match in usermap")
    assert re.fullmatch(
        rf"{TIME} refused alice@shop from 10\.0\.0\.7:51234 at central: no match in usermap "
        r"session=970b hba_file=pg_hba\.conf:2 kind=denied sqlstate=28000\n",
        stream.getvalue(),
    ), stream.getvalue()


def test_a_session_that_is_let_in_says_by_what_proof(session, stream):
    session.note(proof="cert", identity="CN=alice.smith", backend_pid=7)
    session.allowed()
    assert re.fullmatch(
        rf"{TIME} allowed alice@shop from 10\.0\.0\.7:51234 at central: cert for CN=alice\.smith "
        r"session=970b hba_file=pg_hba\.conf:2 backend_pid=7\n",
        stream.getvalue(),
    ), stream.getvalue()


def test_an_end_says_how_long_it_took_and_not_again_what_was_said_before(session, stream):
    session.note(proof="cert", identity="CN=alice.smith", backend_pid=7)
    session.ended("ok", "the client closed", bytes_from_client=1, bytes_from_backend=2, seconds=3.5)
    assert re.fullmatch(
        rf"{TIME} ended   alice@shop from 10\.0\.0\.7:51234 at central: the client closed, after 3\.5 s "
        r"session=970b bytes_from_client=1 bytes_from_backend=2\n",
        stream.getvalue(),
    ), stream.getvalue()


def test_a_client_that_never_said_who_it_is_has_its_address(logger, stream):
    log = SessionLog(logger, RefusalFolder(logger.info), session="970b", generation=1)
    log.note_address(ClientAddress(ip_address("2001:db8::1"), 5, is_local=False), None)
    log.note(tls_error="handshake failed")
    log.refused("client_tls", None, "TLS handshake failed")
    assert "tls_error" not in stream.getvalue()
    assert re.match(rf"{TIME} refused from \[2001:db8::1\]:5: TLS handshake failed ", stream.getvalue())


def test_another_event_is_its_name_its_message_and_its_fields(logger, stream):
    logger.error("config_mistake", mistake="pg_hba.conf:1: wrong")
    logger.info("listening", listener="central", address="127.0.0.1:1")
    logger.warning("too_few_descriptors", limit=1, advice="raise it")
    lines = [re.sub(f"^{TIME} ", "", line) for line in stream.getvalue().splitlines()]
    assert lines == [
        "error   config mistake: pg_hba.conf:1: wrong",
        "info    listening listener=central address=127.0.0.1:1",
        "warning too few descriptors: raise it limit=1",
    ]


def test_a_field_that_is_new_is_shown(session, stream, logger):
    """It was not left out on purpose."""
    logger.info("session_decided", verdict="allowed", worker=3)
    assert "worker=3" in stream.getvalue()


def test_colours_are_for_terminals(logger):
    event = {
        "timestamp": "2026-01-01T12:00:00Z",
        "level": "info",
        "event": "session_decided",
        "verdict": "refused",
    }
    assert "\x1b[31mrefused\x1b[0m" in ConsoleLines(colors=True)(None, "info", dict(event))
    assert "\x1b" not in ConsoleLines(colors=False)(None, "info", dict(event))


def test_the_time_is_the_readers_own():
    event = {"timestamp": "2026-01-01T12:00:00Z", "level": "info", "event": "ready"}
    local = datetime.fromisoformat(event["timestamp"]).astimezone()
    assert ConsoleLines(colors=False)(None, "info", event).startswith(f"{local:%Y-%m-%d %H:%M:%S} ")


def test_hostile_text_of_a_process_event_stays_one_line(logger, stream):
    logger.warning("config_warning", warning="a\nb\x1b[31m", other="c\nd")
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


def test_what_is_left_out_is_a_field():
    assert set(SESSION_FIELDS) > console._LEFT_OUT
