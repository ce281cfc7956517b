"""`pgtlsproxy certs`: what it writes, what it never overwrites, what it shows."""

import contextlib
import json
import os
import re
import shlex
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from pgtlsproxy import pki
from pgtlsproxy.cli import certs_files, certs_show
from pgtlsproxy.cli.certs import certs

SCRIPT = Path(__file__).parents[2] / "certs" / "dev" / "make-certs"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(certs, arguments)
    assert result.exit_code == status, result.output
    return result


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def load(path: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(Path(path).read_bytes())


def mode(path: str) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def common_name(path: str) -> str | bytes:
    return load(path).subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value


def test_from_nothing_to_a_server_and_a_client_in_three_commands(folder: Path) -> None:
    run("ca")
    run("server", "db.example.com", "localhost", "127.0.0.1")
    run("client", "alice")
    verify = ["openssl", "verify", "-x509_strict", "-CAfile", "ca.crt"]
    subprocess.run([*verify, "-purpose", "sslserver", "server.crt"], check=True, capture_output=True)
    subprocess.run([*verify, "-purpose", "sslclient", "alice.crt"], check=True, capture_output=True)
    assert common_name("alice.crt") == "alice"
    assert names(folder) == [
        "alice.crt",
        "alice.key",
        "ca.crt",
        "ca.key",
        "server.crt",
        "server.key",
    ]


def test_keys_are_for_their_owner_alone_whatever_the_umask(folder: Path) -> None:
    before = os.umask(0)
    try:
        run("ca")
        run("client", "alice")
    finally:
        os.umask(before)
    assert mode("ca.key") == mode("alice.key") == 0o600
    assert mode("ca.crt") == 0o644


def test_what_was_written_and_the_next_step_are_said(folder: Path) -> None:
    assert "wrote ca.crt" in run("ca").output
    output = run("client", "alice", "--out", "a").output
    assert "wrote a.crt" in output
    assert "a.key (mode 0600)" in output
    assert 'psql "user=alice sslmode=verify-full sslrootcert=ca.crt sslcert=a.crt sslkey=a.key"' in output


def test_options_are_obeyed(folder: Path) -> None:
    run("ca", "--name", "Example", "--out", "top", "--days", "20", "--key-type", "ed25519")
    assert common_name("top.crt") == "Example"
    run("server", "db", "--ca", "top.crt", "--days", "2", "--key-type", "rsa", "--out", "db.example.com")
    certificate = load("db.example.com.crt")
    assert certificate.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=2)
    Path("top.key").rename("elsewhere.key")
    run("client", "bob", "--ca", "top.crt", "--ca-key", "elsewhere.key")


def test_intermediate_is_part_of_what_is_issued_below_it(folder: Path) -> None:
    run("ca")
    run("ca", "--ca", "ca.crt", "--name", "Inter", "--out", "inter")
    output = run("client", "alice", "--ca", "inter.crt").output
    assert "sslrootcert=ROOT.crt" in output
    assert Path("alice.crt").read_bytes().count(b"BEGIN CERTIFICATE") == 2
    subprocess.run(
        ["openssl", "verify", "-CAfile", "ca.crt", "-untrusted", "alice.crt", "alice.crt"],
        check=True,
        capture_output=True,
    )


@pytest.mark.parametrize("existing", ["ca.crt", "ca.key"])
def test_nothing_is_overwritten_silently_and_nothing_half_written(folder: Path, existing: str) -> None:
    Path(existing).write_bytes(b"precious")
    result = run("ca", status=1)
    assert f"{existing} exists already: nothing was written" in result.output
    assert names(folder) == [existing]
    assert Path(existing).read_bytes() == b"precious"


def test_file_that_appears_in_between_is_not_overwritten(folder: Path) -> None:
    Path("x.key").write_bytes(b"precious")
    with pytest.raises(certs_files.AlreadyThere, match=r"x\.key exists already"):
        certs_files.write(Path("x.key"), b"new", 0o600, force=False)
    assert Path("x.key").read_bytes() == b"precious"


def test_dead_link_is_not_written_through(folder: Path) -> None:
    Path("ca.key").symlink_to("elsewhere")
    run("ca", status=1)
    assert not Path("elsewhere").exists()


def test_force_replaces_and_leaves_no_other_file_behind(folder: Path) -> None:
    run("ca")
    before = Path("ca.key").read_bytes()
    Path("ca.key").chmod(0o644)
    run("ca", "--force")
    assert Path("ca.key").read_bytes() != before
    assert mode("ca.key") == 0o640
    assert names(folder) == ["ca.crt", "ca.key"]


def test_failure_to_write_is_an_error_that_names_the_file(folder: Path) -> None:
    assert "cannot write none/ca.key" in run("ca", "--out", "none/ca", status=1).output


def test_user_that_makes_no_file_name_needs_out(folder: Path) -> None:
    run("ca")
    before = names(folder)
    for user in ("../postgres", "a/b", "", "-x", "Ω"):
        result = CliRunner().invoke(certs, ["client", "--", user])
        assert result.exit_code == 2, result.output
        assert "--out" in result.output
    assert names(folder) == before
    run("client", "../postgres", "--out", "p")
    assert common_name("p.crt") == "../postgres"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["client", "x" * 64, "--out", "x"], "is no name for a database user"),
        (["server", "db:5432"], "neither an IP address nor a DNS name"),
        (["client", "bob", "--ca", "none.crt"], 'certificate file "none.crt": it does not exist'),
        (["client", "bob", "--ca", "alice.crt"], "is no CA"),
        (["client", "bob", "--ca-key", "alice.key"], "key values mismatch"),
        (["client", "bob", "--ca", "ca.key"], "there is no certificate in it"),
        (["renew", "ca.crt"], "a root certificate is not renewed"),
        (["crl", "--revoke", "none.crt"], 'certificate file "none.crt": it does not exist'),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(folder: Path, arguments: list[str], reason: str) -> None:
    run("ca")
    run("client", "alice")
    before = {path: Path(path).read_bytes() for path in names(folder)}
    assert reason in run(*arguments, status=1).output
    assert {path: Path(path).read_bytes() for path in names(folder)} == before


def test_ca_key_that_others_can_read_is_not_used(folder: Path) -> None:
    run("ca")
    Path("ca.key").chmod(0o644)
    assert "has group or world access" in run("client", "alice", status=1).output


def test_renewal_replaces_both_files_and_keeps_names_owner_and_mode(folder: Path) -> None:
    run("ca")
    run("server", "db.example.com", "127.0.0.1", "--days", "9")
    old = load("server.crt")
    Path("server.crt").chmod(0o600)
    output = run("renew", "server.crt").output
    new = load("server.crt")
    assert f"--revoke {old.serial_number:#x}" in output
    assert new.serial_number != old.serial_number
    assert new.public_key() != old.public_key()
    assert new.extensions.get_extension_for_class(x509.SubjectAlternativeName) == (
        old.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    )
    assert (mode("server.crt"), mode("server.key")) == (0o600, 0o600)
    run("renew", "server.crt", "--days", "1")
    assert load("server.crt").not_valid_after_utc - datetime.now(UTC) <= timedelta(days=1)


def test_renewal_with_the_same_key_leaves_the_key_file(folder: Path) -> None:
    run("ca")
    run("client", "alice")
    before = Path("alice.key").read_bytes()
    run("renew", "alice.crt", "--same-key")
    assert Path("alice.key").read_bytes() == before


def test_renewal_writes_through_a_link_and_keeps_the_link(folder: Path) -> None:
    run("ca")
    run("client", "alice")
    Path("live").mkdir()
    Path("live/alice.crt").symlink_to("../alice.crt")
    Path("live/alice.key").symlink_to("../alice.key")
    old = load("alice.crt")
    run("renew", "live/alice.crt")
    assert Path("live/alice.crt").is_symlink()
    assert load("alice.crt") != old


def test_revocation_by_file_and_by_number_adds_up(folder: Path) -> None:
    run("ca")
    run("client", "alice")
    assert "0 revoked" in run("crl").output
    assert "1 revoked" in run("crl", "--revoke", "alice.crt").output
    assert "3 revoked" in run("crl", "--revoke", "0x1234", "--revoke", "AB:cd", "--days", "3").output
    crl = x509.load_pem_x509_crl(Path("ca.crl").read_bytes())
    assert {entry.serial_number for entry in crl} == {0x1234, 0xABCD, load("alice.crt").serial_number}
    refused = subprocess.run(
        ["openssl", "verify", "-crl_check", "-CAfile", "ca.crt", "-CRLfile", "ca.crl", "alice.crt"],
        check=False,
        capture_output=True,
    )
    assert b"certificate revoked" in refused.stderr


@pytest.mark.parametrize(
    "shown", ["{:x}", "{:X}", "{:#x}", "{}"], ids=["show", "openssl", "0x", "pg_stat_ssl"]
)
def test_a_serial_number_is_taken_as_it_is_shown(folder: Path, shown: str) -> None:
    run("ca")
    run("client", "alice")
    serial = load("alice.crt").serial_number
    assert f"serial:    {serial:x}\n" in run("show", "alice.crt").output
    run("crl", "--revoke", shown.format(serial))
    crl = x509.load_pem_x509_crl(Path("ca.crl").read_bytes())
    assert [entry.serial_number for entry in crl] == [serial]


def test_a_serial_number_that_could_be_another_revokes_nobody(folder: Path) -> None:
    run("ca")
    refused = run("crl", "--revoke", "1234", status=2).output
    assert "write 0x1234, or 0x4d2 if it is decimal" in refused
    assert not Path("ca.crl").exists()


def test_file_with_several_crls_is_not_thinned_out(folder: Path) -> None:
    run("ca")
    run("crl", "--out", "all.crl")
    Path("all.crl").write_bytes(Path("all.crl").read_bytes() * 2)
    assert "holds 2 CRLs" in run("crl", "--out", "all.crl", status=1).output


def test_damaged_crl_is_not_replaced_by_a_shorter_one(folder: Path) -> None:
    run("ca")
    Path("ca.crl").write_bytes(b"garbage")
    run("crl", status=1)
    assert Path("ca.crl").read_bytes() == b"garbage"


# show


def write(issued: pki.Issued, path: str = "x.crt") -> pki.Issued:
    Path(path).write_bytes(issued.certificate_pem())
    return issued


CA = pki.make_ca("Test CA")
NOW = datetime.now(UTC).replace(microsecond=0)


def valid(start: float, end: float) -> pki.Validity:
    return pki.Validity(NOW + timedelta(days=start), NOW + timedelta(days=end))


def test_show_tells_every_certificate_of_pem_and_der_files(folder: Path) -> None:
    issued = write(pki.issue_server(pki.make_intermediate(CA, "Inter"), ["db.example.com", "::1"]))
    Path("ca.der").write_bytes(CA.certificate.public_bytes(Encoding.DER))
    output = run("show", "x.crt", "ca.der").output
    for expected in ("CN=db.example.com", "CN=Inter", "CN=Test CA", "DNS:db.example.com, IP:::1", "(valid)"):
        assert expected in output
    assert f"{issued.certificate.serial_number:x}" in output
    assert output.count("subject:") == 3
    assert "\x1b" not in output


@pytest.mark.parametrize(
    ("validity", "state", "left", "status"),
    [
        (valid(-1, 300.5), "valid", 300, 0),
        (valid(-300, 10.5), "expires soon", 10, 0),
        (valid(-0.1, 0.9), "valid", 0, 0),
        (valid(-300, -1.5), "expired", -2, 1),
        (valid(1, 300.5), "not yet valid", 300, 1),
    ],
)
def test_show_says_what_the_dates_mean_today(
    folder: Path, validity: pki.Validity, state: str, left: int, status: int
) -> None:
    write(pki.issue_client(CA, "alice", lifetime=validity))
    assert f"{left} ({state})" in run("show", "x.crt", status=status).output
    (shown,) = json.loads(run("show", "--json", "x.crt", status=status).stdout)
    assert (shown["state"], shown["days_left"]) == (state, left)


def test_show_for_machines_is_one_array_with_every_field(folder: Path) -> None:
    issued = write(pki.issue_server(CA, ["db.example.com"]))
    result = run("show", "--json", "x.crt")
    (shown,) = json.loads(result.stdout)
    assert shown["source"] == "x.crt"
    assert shown["subject"] == "CN=db.example.com"
    assert shown["issuer"] == "CN=Test CA"
    assert shown["common_names"] == ["db.example.com"]
    assert shown["subject_alt_names"] == ["DNS:db.example.com"]
    assert shown["serial"] == f"{issued.certificate.serial_number:x}"
    assert datetime.fromisoformat(shown["not_after"]) == issued.certificate.not_valid_after_utc


def test_show_goes_on_past_what_cannot_be_read_and_ends_with_1(folder: Path) -> None:
    write(pki.issue_client(CA, "alice"))
    Path("garbage").write_bytes(b"garbage")
    result = run("show", "none.crt", "garbage", "x.crt", status=1)
    assert "CN=alice" in result.stdout
    assert 'certificate file "none.crt": it does not exist' in result.stderr
    assert "it is not PEM" in result.stderr
    assert run("show", "--json", "none.crt", status=1).stdout == "[]\n"


def test_show_of_nothing_is_wrong_usage(folder: Path) -> None:
    run("show", status=2)


HOSTILE = [
    "[/x]",
    "[bold]x[/bold]",
    "\x1b[31mred",
    "a\nb",
    "\u202eevil",
    "x" * 5000,
    "[link=http://x]y",
    "\\[x]",
]


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("terminal", [False, True])
def test_hostile_names_are_shown_as_text(
    folder: Path,
    hostile: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    terminal: bool,
) -> None:
    attribute = x509.NameAttribute(NameOID.ORGANIZATION_NAME, hostile, _validate=False)
    write(pki.issue_client(CA, "", subject=x509.Name([attribute])), "[red]x.crt")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    assert certs_show.show(["[red]x.crt"], None, as_json=False) == 0
    output = capsys.readouterr().out
    assert "[red]x.crt" in output
    assert not set(output) & set("\x1b\x07\u202e")
    if hostile.isascii() and hostile.isprintable() and len(hostile) < 50:
        assert f"O={hostile}".replace("\\", "\\\\") in output


@contextlib.contextmanager
def server(conversation: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server for one connection; yields its HOST:PORT."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            accepted, _ = listening.accept()
            with accepted, contextlib.suppress(OSError):
                conversation(accepted)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join(10)


def test_show_connect_tells_the_chain_that_a_server_presents_unverified(folder: Path) -> None:
    issued = write(pki.issue_server(pki.make_intermediate(CA, "Inter"), ["elsewhere.example.com"]))
    Path("x.key").write_bytes(issued.key_pem().reveal())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("x.crt", "x.key")

    def postgres(client: socket.socket) -> None:
        assert client.recv(8) == b"\0\0\0\x08\x04\xd2\x16\x2f"
        client.sendall(b"S")
        context.wrap_socket(client, server_side=True).close()

    with server(postgres) as address:
        result = run("show", "--json", "--connect", address)
    shown = json.loads(result.stdout)
    assert [one["subject"] for one in shown] == ["CN=elsewhere.example.com", "CN=Inter"]
    assert {one["source"] for one in shown} == {address}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"N", "the server does not offer TLS"),
        (b"E", "answered SSLRequest with an error"),
        (b"", "closed the connection"),
        (b"\x1b", r"answered SSLRequest with b'\x1b'"),
        (b"S", "the TLS handshake failed"),
    ],
)
def test_show_connect_says_why_there_is_no_certificate(folder: Path, answer: bytes, reason: str) -> None:
    def refuse(client: socket.socket) -> None:
        client.recv(8)
        client.sendall(answer)

    with server(refuse) as address:
        result = run("show", "--connect", address, status=1)
    assert reason in result.stderr
    assert "\x1b" not in result.stderr


def test_show_connect_does_not_wait_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certs_show, "CONNECT_SECONDS", 1)
    for greeting, reason in ((b"", "timed out"), (b"S", "silent for 1 s")):

        def be_silent(client: socket.socket, greeting: bytes = greeting) -> None:
            client.recv(8)
            client.sendall(greeting)
            client.settimeout(10)
            while client.recv(4096):
                pass

        with server(be_silent) as address:
            assert reason in run("show", "--connect", address, status=1).stderr


def test_show_connect_refuses_what_is_no_address(folder: Path) -> None:
    for address in ("db:x", "db:0", "db:65536", "db:99999999999999999999999"):
        assert "HOST:PORT" in run("show", "--connect", address, status=2).output
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert "cannot connect" in run("show", "--connect", f"127.0.0.1:{port}", status=1).output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("db", ("db", 5432)),
        ("db:6432", ("db", 6432)),
        ("[::1]:6432", ("::1", 6432)),
        ("[::1]", ("::1", 5432)),
        ("::1", ("::1", 5432)),
    ],
)
def test_addresses_are_read_as_people_write_them(text: str, expected: tuple[str, int]) -> None:
    assert certs_show._host_and_port(text) == expected


# The help and the development certificates.


def examples(command: click.Command) -> list[list[str]]:
    text = command.help or ""
    lines = re.findall(r"^ +pgtlsproxy certs (.*?)(?: &&.*)?$", text[text.index("Example") :], re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_every_example_of_the_help_works_as_it_stands(folder: Path) -> None:
    Path("pki").mkdir()
    for command in (certs, *(certs.commands[name] for name in ("ca", "show", "renew", "crl"))):
        assert examples(command)
        for arguments in examples(command):
            if "--connect" not in arguments:
                run(*arguments)
    for name in ("server", "client"):
        assert len(examples(certs.commands[name])) == 1
        run(*examples(certs.commands[name])[0], "--force")
    assert all("Example" in (command.help or "") for command in certs.commands.values())


def make_certs(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_development_certificates_are_made_once_and_anew_only_by_force(folder: Path) -> None:
    bases = ["alice", "ca", "proxy-client", "server"]
    done = make_certs("dev")
    assert done.returncode == 0, done.stderr
    assert names(Path("dev")) == sorted(
        ["ca.crl", *(f"{name}{end}" for name in bases for end in (".crt", ".key"))]
    )
    assert common_name("dev/proxy-client.crt") == "pgtlsproxy"
    alternative = load("dev/server.crt").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternative.get_values_for_type(x509.DNSName) == ["localhost", "db.example.com"]
    assert [str(ip) for ip in alternative.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    before = Path("dev/ca.key").read_bytes()
    again = make_certs("dev")
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert Path("dev/ca.key").read_bytes() == before
    forced = make_certs("--force", "dev")
    assert forced.returncode == 0, forced.stderr
    assert Path("dev/ca.key").read_bytes() != before
    assert "DEV ONLY" in (SCRIPT.parent / "README.md").read_text()
