"""Files that pg_hba.conf, pg_ident.conf and a roles file include are served, reloaded and named as those themselves."""

import json

import pytest

from fixtures import wire
from fixtures.deployments import config, in_clear, passthrough
from fixtures.fake_backend import lets_everybody_in
from fixtures.wire import WireClient, another_source

FILES = {
    "pg_hba.conf": "include teams/hba.conf\nhost all +staff all trust\n",
    "teams/hba.conf": "host all @names all trust\ninclude_dir d\ninclude_if_exists later.conf\n",
    "teams/names": "alice, bob\n",
    "teams/d/1.conf": "host all mallory all reject\n",
    "roles": "staff @more\n",
    "more": "carol\n",
}


@pytest.fixture
def running(proxy, certs, fake_backend, tmp_path):
    (tmp_path / "teams" / "d").mkdir(parents=True)
    backend = passthrough(fake_backend(lets_everybody_in), certs, require_auth="none")
    return proxy(config({"l": in_clear(roles_file="roles")}, primary=backend), FILES)


def decided(running, user):
    with WireClient(("127.0.0.1", running.port("l")), source=another_source()) as client:
        client.send(wire.startup(user=user))
        is_in = client.read_message().kind == b"R"
        event = running.wait_for_event("session_decided", **client.where)
    folder = f"{running.config.parent}/"
    line = f"{event['hba_file'].removeprefix(folder)}:{event['hba_line']}" if event.get("hba_line") else None
    return is_in, line


def write(running, name, content):
    (running.config.parent / name).write_text(content)


def test_a_decision_names_the_file_and_line_that_it_comes_from(running):
    assert {user: decided(running, user) for user in ("alice", "mallory", "carol", "dave")} == {
        "alice": (True, "teams/hba.conf:1"),
        "mallory": (False, "teams/d/1.conf:1"),
        "carol": (True, "pg_hba.conf:2"),
        "dave": (False, None),
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("teams/names", "dave\n"),
        ("teams/d/0.conf", "host all dave all trust\n"),
        ("teams/later.conf", "host all dave all trust\n"),
        ("more", "dave"),
    ],
)
def test_a_reload_sees_a_change_in_any_of_them(running, name, content):
    assert decided(running, "dave")[0] is False
    write(running, name, content)
    assert running.reload()["event"] == "reloaded"
    assert decided(running, "dave")[0] is True


def test_a_mistake_in_one_of_them_keeps_the_policy_and_is_told_where_it_is(running):
    write(running, "teams/d/1.conf", "host all all all magic\n")
    (running.config.parent / "more").unlink()
    failed = running.reload()
    assert failed["kept"] == ["policy of listener l"]
    told = {event["mistake"].split(": ")[0] for event in running.log_events("config_mistake")}
    folder = running.config.parent
    assert told == {f"{folder}/teams/d/1.conf:1", f"{folder}/roles:1"}
    assert decided(running, "mallory") == (False, "teams/d/1.conf:1")
    assert decided(running, "carol")[0] is True


def test_check_names_every_mistake_in_them(running, command_line):
    write(running, "teams/names", "@missing\n")
    write(running, "teams/d/1.conf", "host all all all magic\n")
    found = json.loads(command_line("check", "-c", running.config, "--json").stdout)["mistakes"]
    folder = running.config.parent
    assert {mistake["where"] for mistake in found} == {
        f"{folder}/teams/hba.conf:1",
        f"{folder}/teams/d/1.conf:1",
    }
