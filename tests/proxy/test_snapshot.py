"""Snapshots from files: what a unit keeps where nothing new can be built."""

from pathlib import Path
from typing import Any

import pytest

from pgtlsproxy import pki
from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.scram.keys import Verifier
from pgtlsproxy.proxy import files, reading
from pgtlsproxy.proxy.snapshot import Reloaded, Snapshot, build, load, reload
from pgtlsproxy.proxy.units import Units
from pgtlsproxy.tls import contexts
from pgtlsproxy.tls.contexts import ContextError

CA = pki.make_ca("test CA")
SERVER = pki.issue_server(CA, ["localhost"])

YAML = """
listeners:
  a: {listen: ["127.0.0.1:0"], ssl: on, ssl_cert_file: server.crt, ssl_key_file: server.key, ssl_ca_file: ca.crt,
      hba_file: pg_hba.conf, backend: shared}
  u: {listen: ["unix:/tmp"], ssl: off, hba_file: local_hba.conf, backend: users}
backends:
  shared: {host: localhost, sslrootcert: ca.crt, login: passthrough}
  users: {host: localhost, sslrootcert: ca.crt, sslcert: "{user}.crt", sslkey: "{user}.key", sslpassword: secret,
          login: certificate}
"""

PASSFILE = "passfile, passfile: passwords"
ASKING = YAML.replace("backend: shared", "scram_secrets_file: secrets.txt, backend: shared").replace(
    "passthrough", PASSFILE
)
VERIFIER = Verifier.make(Secret(b"pencil"), bytes(16), 1)


@pytest.fixture
def in_service(tmp_path: Path) -> Snapshot:
    for name, content in {
        "pgtlsproxy.yaml": YAML.encode(),
        "pg_hba.conf": b"hostssl all all all scram-sha-256\n",
        "local_hba.conf": b"local all all peer\n",
        "ca.crt": CA.certificate_pem(),
        "server.crt": SERVER.certificate_pem(),
        "server.key": SERVER.key_pem().reveal(),
    }.items():
        path = tmp_path / name
        path.touch(mode=0o600)
        path.write_bytes(content)
    return load(str(tmp_path / "pgtlsproxy.yaml")).snapshot


def test_contexts_that_cannot_be_built_leave_the_old_ones_in_service(
    in_service: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ContextError([("ssl_ca_file", "made to fail")])

    monkeypatch.setattr(contexts, "server_context", refuse)
    monkeypatch.setattr(contexts, "backend_context", refuse)
    result = reload(in_service)
    folder = Path(in_service.path)
    assert {str(mistake) for mistake in result.mistakes} == {
        f"{folder}: listeners.a.ssl_ca_file: made to fail",
        f"{folder}: backends.shared.ssl_ca_file: made to fail",
        f"{folder}: backends.users.ssl_ca_file: made to fail",
        f"{folder}: listeners.u.backend: backend users does not load, and the policy was written for it",
        f"{folder}: listeners.a.backend: backend shared does not load, and the policy was written for it",
    }
    assert {"TLS settings of listener a", "TLS settings of backend shared"} <= set(result.kept)
    assert result.snapshot.listeners["a"].tls_context is in_service.listeners["a"].tls_context
    assert result.snapshot.backends == in_service.backends


def test_a_pair_that_openssl_refuses_with_the_old_settings_too_keeps_the_old_pair(
    in_service: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = (listener.pair for name, listener in in_service.listeners.items() if name == "a")
    renewed = pki.issue_server(CA, ["localhost"])
    folder = Path(in_service.path).parent
    (folder / "server.crt").write_bytes(renewed.certificate_pem())
    (folder / "server.key").write_bytes(renewed.key_pem().reveal())
    real = contexts.server_context

    def takes_old_pair(pair: contexts.KeyPair, *others: object) -> object:
        if pair is not old:
            raise ContextError([("ssl_key_file", "too weak")])
        return real(pair, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(contexts, "server_context", takes_old_pair)
    result = reload(in_service)
    assert [str(mistake) for mistake in result.mistakes] == [
        f"{in_service.path}: listeners.a.ssl_key_file: too weak"
    ]
    assert result.kept == ("TLS settings of listener a", "certificate of listener a")
    assert result.snapshot.listeners["a"].pair is old


def test_a_file_with_an_inline_password_is_judged_by_the_descriptor_that_it_was_read_from(
    in_service: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(in_service.path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="configuration file with sslpassword .* has group or world access"):
        load(str(path))
    path.chmod(0o600)
    real = files.load_settings

    def vanishes(name: str, *arguments: Any) -> object:
        settings = real(name, *arguments)
        Path(name).unlink()
        return settings

    monkeypatch.setattr(files, "load_settings", vanishes)
    assert reload(in_service).mistakes == ()
    assert [str(mistake) for mistake in reload(in_service).mistakes] == [
        f'{path}: could not open configuration file "{path}": it does not exist'
    ]


@pytest.mark.parametrize("folder", ["a\\0b", "\\ud800"])
def test_a_path_that_no_folder_can_have_is_a_mistake(in_service: Snapshot, folder: str) -> None:
    path = Path(in_service.path)
    text = YAML.replace("ssl_ca_file: ca.crt", f'ssl_ca_file: ca.crt, ssl_crl_dir: "{folder}"')
    path.write_text(text)
    result = reload(in_service)
    assert [mistake.what for mistake in result.mistakes if "ssl_crl_dir" in mistake.where] != []


def test_a_policy_whose_databases_lead_to_a_backend_that_does_not_load_is_not_taken(
    in_service: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of several is enough: no policy is ever half of a newer one."""
    file = Path(in_service.path)
    databases = "databases: {crm: users, shop: shared}"
    file.write_text(
        YAML.replace("hba_file: local_hba.conf, backend: users", f"hba_file: pg_hba.conf, {databases}")
    )
    (file.parent / "pg_hba.conf").write_text("hostssl shop all all scram-sha-256\nlocal all all peer\n")
    make = Units.backend_context

    def refuse_one(units: Units, name: str, *others: object) -> object:
        if name == "shared":
            raise ConfigError([Mistake("backends.shared", "made to fail")])
        return make(units, name, *others)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Units, "backend_context", refuse_one)
        result = reload(in_service)
    assert [str(mistake) for mistake in result.mistakes if "listeners.u" in mistake.where] == [
        f"{file}: listeners.u.databases.shop: backend shared does not load, and the policy was written for it"
    ]
    assert "policy of listener u" in result.kept
    kept = result.snapshot.listeners["u"]
    assert (kept.rules, list(kept.backends)) == (in_service.listeners["u"].rules, ["users"])
    taken = reload(in_service).snapshot.listeners["u"]
    assert list(taken.backends) == ["users", "shared"]
    assert taken.rules.databases.others is None


@pytest.fixture
def with_secrets(in_service: Snapshot) -> Snapshot:
    """Listener a asks for passwords itself, and alice has one."""
    folder = Path(in_service.path).parent
    for name in ("secrets.txt", "passwords"):
        (folder / name).touch(mode=0o600)
    (folder / "secrets.txt").write_text(f'"alice" "{VERIFIER.text()}"\n')
    (folder / "passwords").write_text("*:*:*:alice:secret\n")
    (folder / "pgtlsproxy.yaml").write_text(ASKING)
    return build(reading.read(in_service.path, serves=True), None).snapshot


def taken(in_service: Snapshot, text: str) -> Reloaded:
    Path(in_service.path).write_text(text)
    return build(reading.read(in_service.path, in_service=in_service.settings, serves=True), in_service)


BROKEN_POLICY = {
    "the secrets are named no more": ASKING.replace("scram_secrets_file: secrets.txt, ", ""),
    "the proxy would ask nobody any more": ASKING.replace(PASSFILE, "passthrough"),
    "another file": ASKING.replace("secrets.txt", "passwords"),
}


@pytest.mark.parametrize("text", BROKEN_POLICY.values(), ids=BROKEN_POLICY)
def test_a_policy_that_stays_keeps_the_secrets_that_it_needs(with_secrets: Snapshot, text: str) -> None:
    Path(with_secrets.path).with_name("pg_hba.conf").write_text("nonsense\n")
    result = taken(with_secrets, text)
    assert "policy of listener a" in result.kept
    before, now = (each.listeners["a"].secrets for each in (with_secrets, result.snapshot))
    assert now == before
    assert now is not None
    assert now.mock_secret is not None


def test_a_policy_that_stays_has_the_newest_lines_of_its_file(with_secrets: Snapshot) -> None:
    Path(with_secrets.path).with_name("pg_hba.conf").write_text("nonsense\n")
    Path(with_secrets.path).with_name("secrets.txt").write_text("")
    now = taken(with_secrets, ASKING).snapshot.listeners["a"].secrets
    assert now is not None
    assert now.by_user == {}


def test_a_policy_that_needs_a_mock_secret_waits_for_it(with_secrets: Snapshot) -> None:
    """Without one, users who are not listed could not even be asked, and would show."""
    path = Path(with_secrets.path)
    path.write_text(ASKING.replace(PASSFILE, "passthrough"))
    before = build(reading.read(str(path), serves=True), None).snapshot
    result = taken(before, ASKING.replace("scram_secrets", "scram_mock_secret_file: ., scram_secrets"))
    assert {"SCRAM secrets of listener a", "policy of listener a"} <= set(result.kept)
    assert f"{path}: listeners.a.scram_mock_secret_file: does not load, and the policy needs it" in {
        str(mistake) for mistake in result.mistakes
    }
    (backend,) = result.snapshot.listeners["a"].backends.values()
    assert backend.settings.login == "passthrough"
