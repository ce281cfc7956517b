"""A change counts when two looks in a row find the same; it is the content that is compared."""

import os
import shutil
import threading
from pathlib import Path

import pytest
import structlog

from pgtlsproxy import pki
from pgtlsproxy.proxy.errands import Errands
from pgtlsproxy.proxy.reading import read
from pgtlsproxy.proxy.watch import RESTLESS_LOOKS, Look, Watch

CA = pki.make_ca("test CA")
SERVER, RENEWED = (pki.issue_server(CA, ["localhost"]) for _ in range(2))

YAML = """
listeners:
  a:
    listen: ["127.0.0.1:0"]
    ssl: on
    ssl_cert_file: tls/server.crt
    ssl_key_file: tls/server.key
    ssl_ca_file: ca.crt
    ssl_crl_dir: crl
    hba_file: pg_hba.conf
    ident_file: pg_ident.conf
    roles_file: roles.conf
    scram_secrets_file: secrets.txt
    backend: b
include: teams/*.yaml
backends:
  b: {host: localhost, sslrootcert: backend.crt, login: passfile, passfile: pass.txt}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "p.yaml": YAML,
        "ca.crt": "ca",
        "backend.crt": "ca of the backend",
        "pg_hba.conf": "include_if_exists more.conf\ninclude_dir conf.d\nhost all @users all scram-sha-256\n",
        "users": "alice\n",
        "pg_ident.conf": "m a b\n",
        "roles.conf": "",
        "secrets.txt": "",
        "pass.txt": "*:*:*:*:x\n",
        "teams/one.yaml": "backends: {c: {host: localhost, sslrootcert: backend.crt, login: passthrough}}\n",
        "conf.d/one.conf": "host all all 10.0.0.0/8 reject\n",
        "crl/one.crl": "crl",
        "tls/server.crt": SERVER.certificate_pem(),
        "tls/server.key": SERVER.key_pem().reveal(),
    }
    for name, content in files.items():
        put(tmp_path / name, content)
    return tmp_path


def put(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


class Looks:
    """Looks one at a time."""

    def __init__(self, folder: Path) -> None:
        first = read(str(folder / "p.yaml"), serves=True)
        assert first.settings is not None, first.mistakes
        self._at_once = first.settings.model_copy(update={"reload_interval": 1e-9})
        self._never = first.settings.model_copy(update={"reload_interval": 0})
        self._woken = threading.Event()
        self.watch = Watch(first, structlog.get_logger(), Errands(self._woken.set))

    def __call__(self):
        """What a look takes for a change: the paths, or None."""
        self._woken.clear()
        assert self.watch.go_on(self._at_once) is None
        assert self._woken.wait(20)
        look = self.watch.go_on(self._never)
        return None if look is None else self.watch.changed(look)


CHANGES = {
    name: (name, lambda path: path.write_text(path.read_text() + "# more\n"))
    for name in (
        "p.yaml", "ca.crt", "backend.crt", "pg_hba.conf", "users", "pg_ident.conf", "roles.conf", "secrets.txt",
        "pass.txt", "conf.d/one.conf",
    )
} | {
    "a missing file appears": ("more.conf", lambda path: put(path, "host all all all reject\n")),
    "a file appears in a folder that is included": ("conf.d", lambda path: put(path / "two.conf", "")),
    "a file that the YAML includes": ("teams/one.yaml", lambda path: path.write_text("")),
    "another one": ("teams", lambda path: put(path / "two.yaml", "# nothing yet")),
    "a file is gone": ("ca.crt", Path.unlink),
    "a folder is gone": ("crl", shutil.rmtree),
    "a CRL is exchanged": ("crl", lambda path: put(path / "one.crl", "CRL")),
    "a key may be read by others": ("tls/server.key", lambda path: path.chmod(0o644)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "change"), CHANGES.values(), ids=CHANGES)
def test_a_change_counts_when_two_looks_agree(folder, name, change):
    look = Looks(folder)
    assert look() is None
    change(folder / name)
    found = [look(), look()]
    if name == "tls/server.key":  # half of a pair
        found.append(look())
    *before, changed = found
    assert before == [None] * len(before)
    assert str(folder / ("p.yaml" if name.startswith("teams") else name)) in changed


def test_what_is_the_same_is_no_change_whatever_its_times_and_its_inode(folder):
    look = Looks(folder)
    for path in folder.rglob("*"):
        if path.is_file():
            copy = path.with_name(path.name + "~")
            shutil.copy(path, copy)
            copy.rename(path)
            os.utime(path, (0, 0))
    for name in ("conf.d", "crl"):
        assert not any(entry.name.endswith("~") for entry in (folder / name).iterdir())
    assert [look(), look(), look()] == [None] * 3


def test_another_content_of_the_same_length_and_time_is_a_change(folder):
    look = Looks(folder)
    path = folder / "pg_ident.conf"
    before = path.stat()
    path.write_text("m a c\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert [look(), look()] == [None, [str(path)]]


def test_a_file_that_is_still_written_is_left_alone(folder):
    look = Looks(folder)
    path = folder / "pg_ident.conf"
    for part in ("m", "m a", "m a bob\n", "m a bob\nm c carol\n"):
        path.write_text(part)
        assert look() is None
    assert look() == [str(path)]


def test_a_file_that_never_holds_still_keeps_no_other_out(folder):
    look = Looks(folder)
    (folder / "crl/one.crl").write_text("CRL")
    found = []
    for turn in range(RESTLESS_LOOKS):
        (folder / "pg_ident.conf").write_text(f"m a b{turn}\n")
        found.append(look())
    assert found[:-1] == [None] * (RESTLESS_LOOKS - 1)
    assert set(found[-1]) == {str(folder / "crl"), str(folder / "pg_ident.conf")}


def test_a_change_that_is_taken_back_is_none(folder):
    look = Looks(folder)
    path = folder / "ca.crt"
    path.rename(folder / "away")
    assert look() is None
    (folder / "away").rename(path)
    assert [look(), look(), look()] == [None] * 3


def test_what_was_taken_is_no_change_any_more(folder):
    look = Looks(folder)
    (folder / "ca.crt").write_text("another")
    assert [look(), look()] == [None, [str(folder / "ca.crt")]]
    look.watch.take(Look.of(read(str(folder / "p.yaml"), serves=True)))
    assert [look(), look()] == [None] * 2


@pytest.mark.parametrize("first", ["server.crt", "server.key"])
def test_half_a_pair_is_given_one_look_more(folder, first):
    renewed = {"server.crt": RENEWED.certificate_pem(), "server.key": RENEWED.key_pem().reveal()}
    look = Looks(folder)
    put(folder / "tls" / first, renewed.pop(first))
    assert [look(), look()] == [None, None]
    ((other, content),) = renewed.items()
    put(folder / "tls" / other, content)
    assert [look(), look()] == [
        None,
        sorted(str(folder / "tls" / name) for name in ("server.crt", "server.key")),
    ]


def test_half_a_pair_that_stays_is_a_change(folder):
    look = Looks(folder)
    path = folder / "tls/server.crt"
    put(path, RENEWED.certificate_pem())
    assert [look(), look(), look()] == [None, None, [str(path)]]


def test_a_volume_of_kubernetes_is_swapped_whole(folder):
    """`name -> ..data/name`, `..data -> ..<time>`: the kubelet exchanges one link."""
    tls = folder / "tls"
    volume(tls, "..1", SERVER)
    (tls / "..data").symlink_to("..1")
    for name in ("server.crt", "server.key"):
        (tls / name).unlink()
        (tls / name).symlink_to(f"..data/{name}")
    look = Looks(folder)
    volume(tls, "..2", RENEWED)
    assert look() is None
    (tls / "..data_tmp").symlink_to("..2")
    (tls / "..data_tmp").rename(tls / "..data")
    shutil.rmtree(tls / "..1")
    assert [look(), look()] == [None, sorted(str(tls / name) for name in ("server.crt", "server.key"))]


def volume(tls, name, issued):
    put(tls / name / "server.crt", issued.certificate_pem())
    put(tls / name / "server.key", issued.key_pem().reveal())


def test_what_a_look_trips_over_is_told_once(folder, monkeypatch):
    told = []
    look = Looks(folder)
    look.watch._logger = type(
        "Logger", (), {"error": lambda _self, *arguments, **_: told.append(arguments)}
    )()
    monkeypatch.setattr("pgtlsproxy.proxy.watch.read_content", lambda *_, **__: 1 / 0)
    assert [look(), look(), look()] == [None] * 3
    assert told == [("bug",)]
    monkeypatch.undo()
    (folder / "ca.crt").write_text("another")
    assert [look(), look()] == [None, [str(folder / "ca.crt")]]
