"""One configuration of several files, and the settings that all listeners or backends have."""

from pathlib import Path

import pytest

from pgtlsproxy.config import load_settings
from pgtlsproxy.errors import ConfigError
from pgtlsproxy.proxy.reading import read_content

MAIN = """
defaults:
  listener: {ssl: off, hba_file: hba/all.conf}
  backend: {sslrootcert: ca.crt, login: passthrough}
include: conf.d/*.yaml
listeners:
  own: {listen: ["127.0.0.1:5001"], backend: primary}
backends:
  primary: {host: db0.example.com}
"""
TEAM = """
listeners:
  %(name)s: {listen: ["127.0.0.1:%(port)s"], backend: %(name)s}
backends:
  %(name)s: {host: %(name)s.example.com, login: certificate, sslcert: a.crt, sslkey: a.key}
"""


@pytest.fixture
def folder(tmp_path):
    put(tmp_path / "p.yaml", MAIN)
    put(tmp_path / "conf.d/b.yaml", TEAM % {"name": "blue", "port": 5003})
    put(tmp_path / "conf.d/a.yaml", TEAM % {"name": "amber", "port": 5002})
    put(tmp_path / "conf.d/.hidden.yaml", "nonsense")
    put(tmp_path / "conf.d/a.yaml~", "nonsense")
    return tmp_path


def put(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def load(folder):
    found = read_content(str(folder / "p.yaml"))
    assert found.settings is not None, [str(mistake) for mistake in found.mistakes]
    return found.settings


def mistakes(folder):
    return [
        str(mistake).replace(f"{folder}/", "") for mistake in read_content(str(folder / "p.yaml")).mistakes
    ]


def test_what_is_included_stands_beside_what_the_file_has_sorted_by_name(folder):
    settings = load(folder)
    assert list(settings.listeners) == ["own", "amber", "blue"]
    assert [each.host[0] for each in settings.backends.values()] == [
        "db0.example.com", "amber.example.com", "blue.example.com",
    ]  # fmt: skip


def test_defaults_hold_where_nothing_else_is_said_in_every_file(folder):
    settings = load(folder)
    assert {each.hba_file for each in settings.listeners.values()} == {f"{folder}/hba/all.conf"}
    assert [each.login for each in settings.backends.values()] == [
        "passthrough",
        "certificate",
        "certificate",
    ]
    assert {each.sslrootcert for each in settings.backends.values()} == {f"{folder}/ca.crt"}


def test_a_default_backend_opens_no_listener_that_lists_its_databases(folder):
    listing = MAIN.replace(", backend: primary}", ", databases: {app: primary}}")
    put(folder / "p.yaml", listing.replace("hba/all.conf}", "hba/all.conf, backend: primary}"))
    own = load(folder).listeners["own"]
    assert (own.backend, list(own.databases)) == (None, ["app"])


def test_paths_are_relative_to_the_folder_of_the_first_file_wherever_they_stand(folder):
    assert load(folder).backends["amber"].sslcert == f"{folder}/a.crt"


def test_a_wrong_default_is_told_once_where_it_stands(folder):
    put(folder / "p.yaml", MAIN.replace("ssl: off", "ssl: perhaps"))
    (mistake,) = mistakes(folder)
    assert mistake.startswith("p.yaml:3: defaults.listener.ssl: ")


@pytest.mark.parametrize(("text", "mistake"), [
    ("listeners: {own: {listen: ['127.0.0.1:5004'], backend: primary}}",
     "conf.d/c.yaml:1: listeners.own: p.yaml:7 has one of this name already: rename one of the two"),
    ("backends: {amber: {host: x}}",
     "conf.d/c.yaml:1: backends.amber: conf.d/a.yaml:5 has one of this name already: rename one of the two"),
    ("workers: 2",
     "conf.d/c.yaml:1: workers: an included file holds listeners: and backends: alone, with names under them"),
    ("include: more.yaml",
     "conf.d/c.yaml:1: include: an included file holds listeners: and backends: alone, with names under them"),
    ("- x", "conf.d/c.yaml:1: found a list, expected listeners: or backends: with their settings"),
    ("listeners: [", "conf.d/c.yaml:1: not YAML: "),
    ("backends:\n  c: {host: x, nonsense: 1}", "conf.d/c.yaml:2: backends.c.nonsense: "),
    ("listeners:\n  c: {listen: ['127.0.0.1:5002'], backend: primary}", "conf.d/c.yaml:2: listeners.c.listen[0]: "),
])  # fmt: skip
def test_a_mistake_names_its_own_file_and_line(folder, text, mistake):
    put(folder / "conf.d/c.yaml", text)
    (found,) = mistakes(folder)
    assert found.startswith(mistake)


def test_a_file_that_is_named_has_to_be_there_and_one_that_matches_does_not(folder):
    put(folder / "p.yaml", MAIN.replace("conf.d/*.yaml", "[conf.d/nobody*.yaml, conf.d/a.yaml]"))
    assert list(load(folder).listeners) == ["own", "amber"]
    put(folder / "p.yaml", MAIN.replace("conf.d/*.yaml", "conf.d/nobody.yaml"))
    (found,) = mistakes(folder)
    assert found.startswith("p.yaml:5: include: could not open included file")


@pytest.mark.parametrize("defaults", ["defaults: x", "defaults: {x: {}}", "defaults: {listener: x}"])
def test_defaults_are_settings_of_listeners_and_backends(folder, defaults):
    put(folder / "p.yaml", f"{defaults}\ninclude:" + MAIN.partition("include:")[2])
    assert any(found.startswith("p.yaml:1: defaults") for found in mistakes(folder))


def test_a_file_with_comments_alone_adds_nothing(folder):
    put(folder / "conf.d/c.yaml", "# nobody yet\n")
    assert list(load(folder).listeners) == ["own", "amber", "blue"]


def test_forty_teams_share_their_settings(folder):
    for number in range(40):
        put(folder / f"conf.d/team{number}.yaml", TEAM % {"name": f"team{number}", "port": 6000 + number})
    assert len(load(folder).listeners) == 43


def test_a_secret_in_an_included_file_is_kept_as_one(folder):
    text = "backends: {c: {host: x, sslcert: a.crt, sslkey: a.key, sslpassword: secret, login: certificate}}"
    put(folder / "conf.d/c.yaml", text)
    for name in ("p.yaml", "conf.d/a.yaml", "conf.d/b.yaml"):
        (folder / name).chmod(0o600)
    (folder / "conf.d/c.yaml").chmod(0o644)
    (found,) = mistakes(folder)
    assert "c.yaml" in found
    assert "group or world access" in found
    assert "secret" not in found.replace("sslpassword", "")


def test_without_a_reader_nothing_is_included():
    with pytest.raises(ConfigError, match="listeners: is missing"):
        load_settings(
            "p.yaml", b"include: x.yaml\nbackends: {a: {host: x, login: passthrough, sslrootcert: y}}"
        )
