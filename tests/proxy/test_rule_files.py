"""What pg_hba.conf and its like include is read once, bounded, and from the folder that was listed."""

import os

import pytest

from pgtlsproxy.policy.hba import parse_hba
from pgtlsproxy.policy.inclusion import Unreadable, expand
from pgtlsproxy.proxy import rule_files
from pgtlsproxy.proxy.reading import read
from pgtlsproxy.proxy.rule_files import Included, InclusionReader
from pgtlsproxy.tls import file_access

YAML = """
listeners:
  l: {listen: ["127.0.0.1:0"], ssl: off, hba_file: pg_hba.conf, ident_file: pg_ident.conf, roles_file: roles,
      backend: b}
backends:
  b: {host: localhost, sslmode: disable, insecure_backend: true, login: passthrough}
"""


@pytest.fixture
def written(tmp_path):
    def write(**contents):
        for name, content in contents.items():
            path = tmp_path / name.replace("__", "/").replace("_conf", ".conf")
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        return tmp_path

    return write


def lines(folder, reader):
    path = folder / "pg_hba.conf"
    return [
        getattr(line, "what", None) or line.ref.text for line in expand(str(path), path.read_bytes(), reader)
    ]


def test_a_worker_finds_all_that_was_read_and_nothing_else(written):
    folder = written(
        pg_hba_conf="host @users all all trust\ninclude more/a.conf\ninclude_dir d\ninclude_if_exists none\n",
        users="x y",
        more__a_conf="include b.conf\n",
        more__b_conf="local b all trust\n",
        d__1_conf="local one all trust\n",
        d__2_txt="broken",
    )
    reader = InclusionReader()
    first = lines(folder, reader)
    for path in (folder / "more").iterdir():
        path.unlink()
    assert lines(folder, reader.included) == lines(folder, reader) == first
    assert [line.split()[1] for line in first] == ["@users", "b", "one"]
    assert isinstance(Included().file("/x"), Unreadable)
    assert isinstance(Included().folder("/x"), Unreadable)


def test_every_file_that_a_configuration_asks_for_is_among_those_read(written):
    folder = written(
        pgtlsproxy_yaml=YAML,
        pg_hba_conf="include hba2\n",
        hba2="host all @users all trust\n",
        users="alice\n",
        pg_ident_conf="include_dir maps\n",
        maps__m_conf="m a b\n",
        roles="staff @users",
    )
    (folder / "pgtlsproxy_yaml").rename(folder / "pgtlsproxy.yaml")
    found = read(str(folder / "pgtlsproxy.yaml"))
    assert {os.path.relpath(path, folder) for path in found.included.files} == {
        "hba2",
        "users",
        "maps/m.conf",
    }
    (rule,) = parse_hba(str(folder / "pg_hba.conf"), found.rules[str(folder / "pg_hba.conf")], found.included)
    assert [token.text for token in rule.users] == ["alice"]
    assert str(rule.ref) == f"{folder}/hba2:1"


def test_a_file_is_read_from_the_folder_that_was_listed(written, monkeypatch):
    folder = written(
        pg_hba_conf="include_dir d", d__a_conf="local good all trust", e__a_conf="local evil all trust"
    )
    listed = file_access.Folder.names

    def exchanged(self):
        names = listed(self)
        (folder / "d").rename(folder / "away")
        (folder / "e").rename(folder / "d")
        return names

    monkeypatch.setattr(file_access.Folder, "names", exchanged)
    assert lines(folder, InclusionReader()) == ["local good all trust"]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda _: None, "it does not exist"),
        (lambda path: path.mkdir(), "is not a regular file"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.symlink_to(path), "symbolic link"),
    ],
    ids=["missing", "folder", "fifo", "loop"],
)
def test_what_is_no_file_is_a_mistake_and_holds_nothing_up(written, make, problem):
    folder = written(pg_hba_conf="include x\nlocal all all trust")
    make(folder / "x")
    first, second = lines(folder, InclusionReader())
    assert problem in first
    assert second == "local all all trust"


def test_only_a_file_that_does_not_exist_may_be_missing(written):
    folder = written(
        pg_hba_conf="include_if_exists x/y\ninclude_if_exists users/y\nlocal all all trust", users=""
    )
    first, second = lines(folder, InclusionReader())
    assert "users/y" in first
    assert second == "local all all trust"


def test_files_are_bounded_in_number_and_size(written, monkeypatch):
    folder = written(pg_hba_conf="include_dir d", **{f"d__{n}_conf": "local all all trust" for n in range(5)})
    monkeypatch.setattr(rule_files, "MAX_FILES", 4)
    assert lines(folder, InclusionReader())[-1] == "more than 4 files are included"
    monkeypatch.setattr(rule_files, "MAX_FILES", 100)
    monkeypatch.setattr(rule_files, "MAX_ALL_OCTETS", 50)
    assert "the included files hold over 0 MB" in lines(folder, InclusionReader())
    monkeypatch.setattr(file_access, "MAX_NAMES", 4)
    assert lines(folder, InclusionReader()) == [f'directory "{folder}/d" has over 4 entries']


def test_a_file_that_many_include_is_read_once(written, monkeypatch):
    folder = written(pg_hba_conf="host all @users all trust\n" * 5, users="alice")
    opened = []
    real = rule_files.read_file
    monkeypatch.setattr(
        rule_files, "read_file", lambda path, *others: opened.append(path) or real(path, *others)
    )
    assert len(lines(folder, InclusionReader())) == 5
    assert opened == [f"{folder}/users"]


@pytest.mark.parametrize("directive", ["include", "include_dir"])
def test_a_path_from_a_file_is_shown_without_control_characters(written, directive):
    folder = written(pg_hba_conf=f'{directive} "\x1b[2Jx"')
    (found,) = lines(folder, InclusionReader())
    assert "\\x1b[2Jx" in found
    assert "\x1b" not in found
