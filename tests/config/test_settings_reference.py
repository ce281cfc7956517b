"""docs/configuration.md names every setting, with the default and the source that it has."""

import re
from pathlib import Path

import psycopg
import pytest

from pgtlsproxy.config.backend import Backend, HostProbe
from pgtlsproxy.config.explaining import OLDER_NAMES
from pgtlsproxy.config.listener import AuthQuery, Database, Listener, RolesQuery
from pgtlsproxy.config.settings import General, Log, Status
from pgtlsproxy.config.values import parse_time
from pgtlsproxy.tls.contexts import DEFAULT_CLIENT_GROUPS

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
PLACES = {
    "General": General,
    "log": Log,
    "status": Status,
    "listeners.NAME": Listener,
    "databases": Database,
    "roles_query": RolesQuery,
    "auth_query": AuthQuery,
    "backends.NAME": Backend,
    "host_probe": HostProbe,
}

STAND_INS = {
    "max_pending": "a quarter of `max_connections`, 16 at least",
    "format": "`console` in a terminal, `json` elsewhere",
    "ssl_tls13_ciphers": "OpenSSL's",
    "ssl_groups": f"`{DEFAULT_CLIENT_GROUPS}`",
    "ssl_dh_params_file": "PostgreSQL's, of 2048 bits",
    "unix_socket_group": "the process's",
    "scram_mock_secret_file": "`scram_secrets_file` with `.mock` behind it",
    "require_auth": "any proof; with `login: passfile` `scram-sha-256`",
    "cancel_unknown": "`forward`; from listeners with `databases` `drop`",
    "application_name_add": "`off`",
    "proxy_protocol": "`off`",
}
"""What is so where a setting without a default of its own is left out."""


def section(title):
    (found,) = re.findall(rf"^##+ {re.escape(title)}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return found


def rows(title):
    """(key, default, whose, meaning) of each row of a table."""
    for line in section(title).splitlines():
        if line.startswith("| `"):
            yield tuple(cell.strip() for cell in line.strip("|").split("|"))


ROWS = [(place, key.strip("`"), *rest) for place in PLACES for key, *rest in rows(place)]
IDS = [f"{row[0]}-{row[1]}" for row in ROWS]


@pytest.mark.parametrize("place", PLACES)
def test_every_setting_stands_there_once_and_no_other(place):
    assert [row[1] for row in ROWS if row[0] == place] == list(PLACES[place].model_fields)


@pytest.mark.parametrize(("place", "key", "shown", "whose", "meaning"), ROWS, ids=IDS)
def test_the_default_is_the_one_that_it_has(place, key, shown, whose, meaning):
    field = PLACES[place].model_fields[key]
    default = None if field.is_required() else field.get_default()
    if field.is_required():
        assert shown == "required"
    elif isinstance(default, Log):
        assert shown == ""
    elif key in STAND_INS:
        assert (default, shown) == (None, STAND_INS[key])
    elif default in (None, ()) and not isinstance(default, bool):
        assert shown == "none" or shown.startswith("required ")
    else:
        assert written(shown, default) == default
    assert meaning.endswith(".")


def written(shown, default):
    """What a default of the page is in the model."""
    text = shown.removeprefix("`").removesuffix("`").strip('"')
    match default:
        case bool():
            return {"on": True, "off": False}[text]
        case float():
            return parse_time(text)
        case int():
            return int(text, 8 if text.startswith("0") else 10)
        case (int(), *_):
            return tuple(map(int, text.split(".")))
        case tuple():
            return tuple(text.split(","))
        case _:
            return text


def whose(source):
    return [(row[1]) for row in ROWS if row[3] == source]


def test_what_is_postgresql_s_is_so_called_there(tls_cluster):
    """PostgreSQL 18's: the newest names. Its TLS is judged by the listener's, whatever is set."""
    known = set(tls_cluster(18).psql("SELECT name FROM pg_settings").stdout.split())
    assert set(whose("postgresql.conf")) <= known
    assert not known & set(whose("ours"))
    assert all(f"`{old}`" in section("listeners.NAME") for old in OLDER_NAMES)


def test_what_is_libpq_s_is_so_called_there():
    known = {default.keyword.decode() for default in psycopg.pq.Conninfo.get_defaults()}
    assert set(whose("libpq")) <= known
    assert not known & set(whose("ours"))


def test_every_setting_has_a_source():
    assert {row[3] for row in ROWS} == {"postgresql.conf", "libpq", "ours"}


def test_what_is_not_in_this_version_stands_there():
    later = section("Not in this version")
    for title, place in (("General", General), ("listeners.NAME", Listener), ("backends.NAME", Backend)):
        shown = "".join(re.findall(rf"^\* {re.escape(title)}: (.*?)\.$", later, re.MULTILINE | re.DOTALL))
        assert re.findall(r"`(\w+)`", shown) == sorted(place.not_in_this_version)


def test_the_limits_of_the_manual_have_their_defaults():
    """docs/operations.md has them all in one table."""
    operations = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    (limits,) = re.findall(r"^## Limits\n(.*?)^## ", operations, re.MULTILINE | re.DOTALL)
    places = {"top": "General", "listener": "listeners.NAME", "backend": "backends.NAME"}
    defaults = {(place, key): default for place, key, default, *_ in ROWS}
    shown = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", limits, re.MULTILINE)
    assert {(places[place], key): default for key, place, default in shown}.items() <= defaults.items()
    limiting = re.compile(
        "max_(connections.*|pending|handshakes)|.*_timeout|.*keepalives.*|(revoked|expired)_sessions|.*_lifetime"
    )
    assert {key for key, *_ in shown} >= {key for _, key in defaults if limiting.fullmatch(key)}
