from __future__ import annotations

import contextlib
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pgtlsproxy.config import Backend, Host, Listener, Settings, TCPAddress, UnixAddress, load_settings
from pgtlsproxy.config.values import parse_listen_address, parse_time
from pgtlsproxy.errors import ConfigError

ABSENT = object()
FOLDER = "/etc/pgtlsproxy"
FILE = f"{FOLDER}/pgtlsproxy.yaml"

LISTENER: dict[str, object] = {
    "listen": '["127.0.0.1:5433"]',
    "ssl": "off",
    "hba_file": "pg_hba.conf",
    "backend": "primary",
}
BACKEND: dict[str, object] = {"host": "db.example.com", "sslrootcert": "ca.crt", "login": "passthrough"}
TLS = {"ssl": "on", "ssl_cert_file": "server.crt", "ssl_key_file": "server.key"}
OWN = {"login": "certificate", "sslcert": "proxy.crt", "sslkey": "proxy.key"}
UNIX = {"host": "/run/postgresql", "sslrootcert": ABSENT}
INSECURE = {"insecure_backend": "true"}


def document(
    listener: dict[str, object] | None = None,
    backend: dict[str, object] | None = None,
    *,
    second: dict[str, object] | None = None,
    top: str = "",
) -> bytes:
    def block(name: str, values: dict[str, object]) -> str:
        return f"  {name}:\n" + "".join(f"    {k}: {v}\n" for k, v in values.items() if v is not ABSENT)

    text = "listeners:\n" + block("central", {**LISTENER, **(listener or {})})
    if second is not None:
        text += block("second", {**LISTENER, "listen": '["127.0.0.1:5434"]', **second})
    return (text + "backends:\n" + block("primary", {**BACKEND, **(backend or {})}) + top).encode()


def load(*args: dict[str, object] | None, **kwargs: object) -> Settings:
    return load_settings(FILE, document(*args, **kwargs))  # type: ignore[arg-type]


def listener(**values: object) -> Listener:
    return load(values).listeners["central"]


def backend(**values: object) -> Backend:
    return load(None, values).backends["primary"]


def mistakes(*args: dict[str, object] | None, **kwargs: object) -> dict[str, str]:
    """What is wrong, by key path."""
    with pytest.raises(ConfigError) as caught:
        load(*args, **kwargs)
    found = {}
    for mistake in caught.value.mistakes:
        place, _, path = mistake.where.partition(": ")
        assert place.startswith(f"{FILE}:"), place
        assert path not in found, f"two mistakes at {path}"
        found[path] = mistake.what
    return found


def test_defaults_are_postgresqls_and_libpqs() -> None:
    loaded = load()
    central, primary = loaded.listeners["central"], loaded.backends["primary"]
    assert central.ssl_min_protocol_version == "TLSv1.2"
    assert central.ssl_max_protocol_version is None
    assert central.ssl_ciphers == "HIGH:MEDIUM:+3DES:!aNULL"
    assert (central.ssl_tls13_ciphers, central.ssl_groups) == ("", None)
    assert central.ssl_prefer_server_ciphers
    assert not central.ssl_passphrase_command_supports_reload
    assert (central.unix_socket_permissions, central.plaintext_from) == (0o770, ())
    assert (primary.sslmode, primary.sslnegotiation, primary.sslsni) == ("verify-full", "postgres", True)
    assert (primary.connect_timeout, primary.target_session_attrs) == (5.0, "any")
    assert primary.load_balance_hosts == "disable"
    assert (primary.max_protocol_version, primary.cancel_unknown) == ((3, 2), "forward")
    assert set(primary.reserved_users) == {"postgres"}
    assert (primary.client_address, primary.insecure_backend) == (False, False)
    assert primary.application_name_add is None
    assert (loaded.authentication_timeout, loaded.startup_timeout) == (60.0, 10.0)
    assert (loaded.max_connections, loaded.cancel_rate) == (1000, 10)
    assert (loaded.log.format, loaded.log.level) == (None, "info")
    assert loaded.warnings == ()


def test_settings_are_frozen() -> None:
    for part, key in ((load(), "max_connections"), (listener(), "ssl"), (backend(), "sslmode")):
        with pytest.raises(ValidationError):
            setattr(part, key, "x")


def test_relative_paths_start_at_the_files_folder() -> None:
    central = listener(**TLS, hba_file="../x/hba.conf", ident_file="/abs/ident.conf")
    assert central.hba_file == f"{FOLDER}/../x/hba.conf"
    assert central.ident_file == "/abs/ident.conf"
    assert central.ssl_key_file == f"{FOLDER}/server.key"
    assert backend(sslcrl="a.crl").sslcrl == f"{FOLDER}/a.crl"


def test_every_mistake_is_reported_at_once() -> None:
    found = mistakes(
        {"ssl": "maybe", "hba_file": ABSENT, "frobnicate": "x"},
        {"port": 0, "sslmode": "allow"},
        second={"backend": "nobody", "ssl_cert_file": "c"},
        top="cancel_rate: -1\nbogus: 1\nworkers: auto\nlog: {level: loud}\n",
    )
    assert set(found) == {
        "listeners.central.ssl",
        "listeners.central.hba_file",
        "listeners.central.frobnicate",
        "listeners.second.ssl_cert_file",
        "listeners.second.backend",
        "backends.primary.port",
        "backends.primary.sslmode",
        "cancel_rate",
        "bogus",
        "workers",
        "log.level",
    }


def test_mistake_names_the_line() -> None:
    with pytest.raises(ConfigError) as caught:
        load({"hba_file": "''"})
    assert caught.value.mistakes[0].where == f"{FILE}:5: listeners.central.hba_file"


@pytest.mark.parametrize(
    "text", ["", "[]", "x", "a: 1", "listeners:\nbackends:\n", "listeners: []\nbackends: {}\n"]
)
def test_configuration_without_listeners_or_backends_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        load_settings(FILE, text.encode())


def test_unknown_key_suggests_the_nearest() -> None:
    assert "sslrootcert" in mistakes(None, {"sslrootcrt": "x"})["backends.primary.sslrootcrt"]
    assert "hba_file" in mistakes({"hba_fil": "x"})["listeners.central.hba_fil"]
    assert "max_connections" in mistakes(top="max_conections: 5\n")["max_conections"]
    assert "is unknown" in mistakes(top="warnings: []\n")["warnings"]


LATER = {
    "": (
        "drain_timeout drain_delay max_connections_per_source max_connections_per_user max_pending status console "
        "reuse_port max_handshakes dns_cache"
    ),
    "listeners.central.": (
        "scram_secrets_file auth_query roles_file roles_query proxy_protocol_from revoked_sessions expired_sessions "
        "databases tcp_keepalives_idle tcp_keepalives_interval tcp_keepalives_count tcp_user_timeout "
        "idle_session_timeout session_lifetime"
    ),
    "backends.primary.": (
        "sslcert_issuer sslkey_issuer sslcert_lifetime passfile proxy_protocol host_probe keepalives "
        "keepalives_idle keepalives_interval keepalives_count tcp_user_timeout dns_cache"
    ),
}


@pytest.mark.parametrize("place", LATER)
def test_settled_key_whose_work_has_not_landed_is_a_mistake(place: str) -> None:
    keys = LATER[place].split()
    values = dict.fromkeys(keys, "1")
    if place == "":
        found = mistakes(top="".join(f"{key}: 1\n" for key in keys))
    else:
        found = mistakes(values if "listeners" in place else None, values if "backends" in place else None)
    assert found == {f"{place}{key}": "is not in this version" for key in keys}


@pytest.mark.parametrize("line", ["workers: auto", "workers: 2", "reload_interval: 10s"])
def test_settled_value_whose_work_has_not_landed_is_a_mistake(line: str) -> None:
    assert "not in this version" in mistakes(top=f"{line}\n")[line.partition(":")[0]]


def test_passfile_login_is_not_in_this_version() -> None:
    assert "not in this version" in mistakes(None, {"login": "passfile"})["backends.primary.login"]


def test_values_that_change_nothing_may_be_written() -> None:
    loaded = load(top="workers: 1\nreload_interval: 0\n")
    assert (loaded.workers, loaded.reload_interval) == (1, 0)


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("listener", {"ssl": '"on"'}),
        ("listener", {"backend": "1"}),
        ("listener", {"hba_file": "no"}),
        ("listener", {"ident_file": ""}),
        ("listener", {**TLS, "ssl_prefer_server_ciphers": "1"}),
        ("backend", {"port": '"5432"'}),
        ("backend", {"host": "no"}),
        ("backend", {"insecure_backend": '"true"'}),
        ("backend", {"reserved_users": "[no]"}),
        ("backend", {"sslcert": "{user}", "sslkey": "k"}),
    ],
)
def test_nothing_is_coerced(part: str, values: dict[str, object]) -> None:
    key = next(key for key in values if values[key] != TLS.get(key))
    place = "listeners.central" if part == "listener" else "backends.primary"
    found = mistakes(values if part == "listener" else None, values if part == "backend" else None)
    assert f"{place}.{key}" in found or f"{place}.{key}[0]" in found


def test_text_where_a_number_is_wanted_is_a_mistake() -> None:
    assert "whole number" in mistakes(top='max_connections: "1000"\n')["max_connections"]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("500ms", 0.5),
        ("10s", 10),
        ("1.5min", 90),
        ("2 h", 7200),
        ("1d", 86400),
        ("7", 7),
        (3, 3),
        (0.5, 0.5),
        (0, 0),
    ],
)
def test_times_are_postgresqls(value: object, seconds: float) -> None:
    assert parse_time(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "s", "10 S", "10m", "-1s", -1, True, None, [1], "1e3", "nan", "1s 2s"])
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is no time"):
        parse_time(value)


@given(st.text(max_size=20) | st.integers() | st.floats() | st.none())
@settings(max_examples=200)
def test_a_time_is_not_negative_or_refused(value: object) -> None:
    with contextlib.suppress(ValueError):
        assert parse_time(value) >= 0


@pytest.mark.parametrize("value", ["999ms", "601s", "11min"])
def test_authentication_timeout_is_from_1s_to_600s(value: str) -> None:
    assert load(top="authentication_timeout: 10min\n").authentication_timeout == 600
    assert "out of range" in mistakes(top=f"authentication_timeout: {value}\n")["authentication_timeout"]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:5433", TCPAddress(("127.0.0.1",), 5433)),
        ("[::1]:5433", TCPAddress(("::1",), 5433)),
        ("[2001:DB8:0::1]:1", TCPAddress(("2001:db8::1",), 1)),
        ("*:0", TCPAddress(("0.0.0.0", "::"), 0)),
        ("localhost:5432", TCPAddress(("127.0.0.1", "::1"), 5432)),
        ("unix:/run/pgtlsproxy", UnixAddress("/run/pgtlsproxy/.s.PGSQL.5432")),
        ("unix:/run/pgtlsproxy/:6432", UnixAddress("/run/pgtlsproxy/.s.PGSQL.6432")),
        ("/run/x/.s.PGSQL.6432", UnixAddress("/run/x/.s.PGSQL.6432")),
    ],
)
def test_every_form_of_listen_address_is_read(text: str, address: object) -> None:
    assert parse_listen_address(text) == address


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("db.example.com:5432", "localhost"),
        ("127.0.0.1", "port is missing"),
        ("::1:5432", "brackets"),
        ("127.0.0.1:65536", "65535"),
        ("127.1:5432", "no numeric address"),
        ("[::ffff:10.0.0.1]:5432", "10.0.0.1:5432"),
        ("/run/x", "unix:/run/x"),
        ("unix:run/x", "begins with /"),
        ("unix:/run/x:0", "port"),
        ("unix:/run/x:x", "port"),
        ("unix:/" + "x" * 100, "107"),
        (":5432", "no numeric address"),
    ],
)
def test_wrong_listen_address_says_what_would_be_right(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        parse_listen_address(text)
    assert hint in str(caught.value)


@given(st.text("[]:.*/0123456789abunixlocalhst", max_size=30))
@settings(max_examples=200)
def test_listen_address_that_is_shown_is_read_back(text: str) -> None:
    try:
        address = parse_listen_address(text)
    except ValueError:
        return
    assert parse_listen_address(str(address)) == address


def test_lists_are_yaml_lists_or_comma_lists() -> None:
    assert (
        listener(listen='"127.0.0.1:1, [::1]:2"').listen
        == listener(listen='["127.0.0.1:1", "[::1]:2"]').listen
    )
    assert backend(host='"a,b"', port='"1,2"').hosts == backend(host="[a, b]", port="[1, 2]").hosts


@pytest.mark.parametrize("others", ["127.0.0.1:5433", "*:5433", "localhost:5433", "0.0.0.0:5433"])
def test_address_of_two_listeners_is_a_mistake(others: str) -> None:
    assert "listener central" in mistakes(second={"listen": f'["{others}"]'})["listeners.second.listen[0]"]


def test_addresses_that_can_live_together_are_taken() -> None:
    assert load(second={"listen": '["127.0.0.2:5433", "[::]:5433", "unix:/run:5433"]'})
    assert load({"listen": '["127.0.0.1:0"]'}, second={"listen": '["127.0.0.1:0"]'})


def test_listener_needs_a_backend_that_exists() -> None:
    assert "is it primary?" in mistakes({"backend": "primry"})["listeners.central.backend"]


def test_tls_needs_certificate_and_key() -> None:
    found = mistakes({"ssl": "on"})
    assert set(found) == {"listeners.central.ssl_cert_file", "listeners.central.ssl_key_file"}


@pytest.mark.parametrize(
    "key", ["ssl_cert_file", "ssl_ca_file", "ssl_ciphers", "ssl_passphrase_command", "ssl_groups"]
)
def test_tls_settings_without_tls_are_a_mistake(key: str) -> None:
    assert "no effect" in mistakes({key: "x"})[f"listeners.central.{key}"]


def test_protocol_versions_are_spelled_as_in_postgresql() -> None:
    central = listener(**TLS, ssl_min_protocol_version="tlsv1.3", ssl_max_protocol_version="TLSV1.3")
    assert (central.ssl_min_protocol_version, central.ssl_max_protocol_version) == ("TLSv1.3", "TLSv1.3")
    assert (
        "TLSv1.2"
        in mistakes({**TLS, "ssl_min_protocol_version": "SSLv3"})[
            "listeners.central.ssl_min_protocol_version"
        ]
    )


def test_inverted_protocol_range_is_a_mistake() -> None:
    versions = {"ssl_min_protocol_version": "TLSv1.3", "ssl_max_protocol_version": "TLSv1.2"}
    assert "listeners.central.ssl_max_protocol_version" in mistakes({**TLS, **versions})
    assert "backends.primary.ssl_max_protocol_version" in mistakes(None, versions)


@pytest.mark.parametrize("key", ["ssl_ciphers", "ssl_groups", "ssl_ecdh_curve"])
def test_empty_list_of_ciphers_or_groups_is_a_mistake(key: str) -> None:
    assert "empty" in mistakes({**TLS, key: "''"})[f"listeners.central.{key}"]


def test_ssl_ecdh_curve_is_ssl_groups() -> None:
    assert listener(**TLS, ssl_ecdh_curve="prime256v1").ssl_groups == "prime256v1"
    found = mistakes({**TLS, "ssl_ecdh_curve": "prime256v1", "ssl_groups": "X25519"})
    assert "ssl_groups" in found["listeners.central.ssl_ecdh_curve"]


def test_file_mode_is_a_quoted_octal_text() -> None:
    assert listener(unix_socket_permissions='"0777"').unix_socket_permissions == 0o777
    for wrong in ("0770", "770", "'0888'", "'0o77'", "'1777'", "rwx"):
        assert mistakes({"unix_socket_permissions": wrong})["listeners.central.unix_socket_permissions"]
    for number in ("0770", "770"):
        assert (
            "quote"
            in mistakes({"unix_socket_permissions": number})["listeners.central.unix_socket_permissions"]
        )


def test_plaintext_from_is_networks() -> None:
    assert listener(plaintext_from='"10.0.0.0/8, fd00::/8"').plaintext_from == (
        ip_network("10.0.0.0/8"),
        ip_network("fd00::/8"),
    )
    found = mistakes(
        {"plaintext_from": '[10.0.0.1/8, 10.0.0.1, 10.0.0.0/255.0.0.0, x, "::ffff:10.0.0.0/104"]'}
    )
    assert set(found) == {f"listeners.central.plaintext_from[{index}]" for index in range(5)}
    assert "10.0.0.0/8" in found["listeners.central.plaintext_from[0]"]
    assert "10.0.0.1/32" in found["listeners.central.plaintext_from[1]"]


def test_listener_knows_its_transports() -> None:
    both = listener(listen='["127.0.0.1:1", "unix:/run"]')
    assert (both.has_tcp, both.has_unix) == (True, True)
    assert (listener().has_tcp, listener().has_unix) == (True, False)


def test_clear_text_listener_that_lets_nobody_in_is_warned_of() -> None:
    (warning,) = load({"listen": '["0.0.0.0:5432"]'}).warnings
    assert "plaintext_from" in warning.what
    assert not load({"listen": '["0.0.0.0:5432"]', "plaintext_from": "10.0.0.0/8"}).warnings
    assert not load({"listen": '["localhost:5432", "127.0.0.9:1", "unix:/run"]'}).warnings
    assert not load({"listen": '["0.0.0.0:5432"]', **TLS}).warnings


def test_hosts_hostaddrs_and_ports_go_together() -> None:
    assert backend(host="[a, b, c]", hostaddr='"10.0.0.1,,::1"', port='"1,,3"').hosts == (
        Host("a", "10.0.0.1", 1),
        Host("b", None, 5432),
        Host("c", "::1", 3),
    )
    assert backend(host="[a, b]", port=7).hosts == (Host("a", None, 7), Host("b", None, 7))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"host": ABSENT}, "host"),
        ({"host": "[a, '']"}, "host"),
        ({"host": "[a, b]", "hostaddr": "10.0.0.1"}, "hostaddr"),
        ({"host": "[a, b]", "port": "[1, 2, 3]"}, "port"),
        ({"host": ABSENT, "hostaddr": "10.0.0.1"}, "host"),
        ({"host": "[/run, a]", "hostaddr": '"10.0.0.1,"'}, "hostaddr"),
        ({"hostaddr": "[a]"}, "hostaddr[0]"),
        ({"host": '["a:5432"]'}, "host[0]"),
        ({"host": '["[::1]"]'}, "host[0]"),
        ({"host": '["@abstract"]'}, "host[0]"),
        ({"host": '["a b"]'}, "host[0]"),
        ({"port": 65536}, "port"),
        ({"port": "[]"}, "port"),
    ],
)
def test_hosts_that_cannot_be_dialled_are_a_mistake(values: dict[str, object], key: str) -> None:
    assert f"backends.primary.{key}" in mistakes(None, values)


@pytest.mark.parametrize("mode", ["verify-ca", "require", "prefer", "disable"])
def test_weaker_sslmode_needs_insecure_backend_and_is_warned_of(mode: str) -> None:
    assert "insecure_backend" in mistakes(None, {"sslmode": mode})["backends.primary.sslmode"]
    (warning,) = load(None, {"sslmode": mode, **INSECURE}).warnings
    assert warning.where.endswith("backends.primary.insecure_backend")
    assert f"sslmode {mode} to db.example.com" in warning.what


def test_warning_tells_verify_ca_from_no_verification() -> None:
    texts = {load(None, {"sslmode": mode, **INSECURE}).warnings[0].what for mode in ("verify-ca", "require")}
    assert len({text.partition(": ")[2] for text in texts}) == 2


def test_allow_is_never_taken() -> None:
    assert "prefer" in mistakes(None, {"sslmode": "allow", **INSECURE})["backends.primary.sslmode"]


def test_unix_backend_needs_no_roots_and_no_permission() -> None:
    for mode in ("verify-full", "disable"):
        loaded = load(None, {**UNIX, "sslmode": mode})
        assert not loaded.warnings
        assert not loaded.backends["primary"].has_tcp_host


def test_mixed_hosts_need_roots() -> None:
    mixed = {"host": "[/run/postgresql, db.example.com]"}
    assert "backends.primary.sslrootcert" in mistakes(None, {**mixed, "sslrootcert": ABSENT})
    assert backend(**mixed).has_unix_host


@pytest.mark.parametrize("mode", ["verify-ca", "require", "prefer", "disable"])
def test_system_roots_forbid_weaker_modes(mode: str) -> None:
    found = mistakes(None, {"sslrootcert": "system", "sslmode": mode, **INSECURE})
    assert "sslrootcert=system" in found["backends.primary.sslmode"]


def test_system_roots_are_no_path() -> None:
    assert backend(sslrootcert="system").sslrootcert == "system"
    assert backend(sslrootcert="./system").sslrootcert == f"{FOLDER}/./system"


def test_direct_negotiation_needs_require_or_stronger() -> None:
    assert backend(sslnegotiation="direct").sslnegotiation == "direct"
    for mode in ("prefer", "disable"):
        assert "backends.primary.sslnegotiation" in mistakes(
            None, {"sslnegotiation": "direct", "sslmode": mode, **INSECURE}
        )


def test_chain_is_verified_wherever_roots_are_given() -> None:
    assert backend().verifies_chain
    assert backend(sslmode="require", **INSECURE).verifies_chain
    assert not backend(sslmode="require", sslrootcert=ABSENT, **INSECURE).verifies_chain


def test_crl_that_nobody_would_look_at_is_a_mistake() -> None:
    found = mistakes(None, {"sslmode": "require", "sslrootcert": ABSENT, "sslcrl": "a.crl", **INSECURE})
    assert set(found) == {"backends.primary.sslcrl"}
    assert "listeners.central.ssl_crl_file" in mistakes({**TLS, "ssl_crl_file": "a.crl"})


def test_certificate_login_needs_a_certificate_on_tcp() -> None:
    assert "backends.primary.sslcert" in mistakes(None, {"login": "certificate"})
    assert backend(**UNIX, login="certificate").uses_own_credential
    for mode in ("prefer", "disable"):
        assert "backends.primary.login" in mistakes(None, {**OWN, "sslmode": mode, **INSECURE})


def test_certificate_and_key_belong_together() -> None:
    assert "backends.primary.sslkey" in mistakes(None, {"sslcert": "c"})
    assert "backends.primary.sslcert" in mistakes(None, {"sslkey": "k"})


def test_user_placeholder_stands_in_both_file_names_and_nowhere_else() -> None:
    users = backend(login="certificate", sslcert='"users/{user}.crt"', sslkey='"users/{user}.key"')
    assert users.has_user_certificates
    assert users.sslcert == f"{FOLDER}/users/{{user}}.crt"
    for cert, key in (("u/{user}.crt", "u.key"), ("u.crt", "u/{user}.key")):
        assert "backends.primary.sslkey" in mistakes(
            None, {**OWN, "sslcert": f'"{cert}"', "sslkey": f'"{key}"'}
        )
    for cert in ("{user}/a.crt", "{user}{user}.crt", "{name}.crt", "a/{user"):
        assert "backends.primary.sslcert" in mistakes(None, {**OWN, "sslcert": f'"{cert}"'})


def test_own_credential_is_certificate_or_unix_socket() -> None:
    assert not backend().uses_own_credential
    assert backend(**OWN).uses_own_credential
    assert backend(**{**OWN, "login": "passthrough"}).uses_own_credential
    assert backend(**UNIX).uses_own_credential
    assert backend(host="[db.example.com, /run/postgresql]").uses_own_credential


def test_passphrase_is_a_secret() -> None:
    secret = backend(**OWN, sslpassword="hunter2")
    assert secret.has_inline_secret
    assert secret.sslpassword is not None
    assert secret.sslpassword.reveal() == b"hunter2"
    assert "hunter2" not in repr(secret)
    assert not backend(**OWN, sslpassword_file="pw").has_inline_secret


@pytest.mark.parametrize("value", ["271828", "027", "1:30", "[hunter2]", "!hunter2", "{hunter2: x}"])
def test_no_mistake_shows_a_passphrase(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {**OWN, "sslpassword": value})
    assert not any(
        text in str(caught.value).replace(FILE, "") for text in ("271828", "hunter2", "027", "1:30")
    )


def test_passphrase_needs_a_key_and_one_source() -> None:
    assert "backends.primary.sslpassword" in mistakes(None, {"sslpassword": "x"})
    assert "backends.primary.sslpassword_file" in mistakes(
        None, {**OWN, "sslpassword": "x", "sslpassword_file": "f"}
    )


@pytest.mark.parametrize("wanted", ["read-write", "read-only", "primary", "standby", "prefer-standby"])
def test_session_attributes_cannot_be_chosen_with_passthrough(wanted: str) -> None:
    assert (
        "SCRAM proof"
        in mistakes(None, {"target_session_attrs": wanted})["backends.primary.target_session_attrs"]
    )
    assert backend(**OWN, target_session_attrs=wanted).target_session_attrs == wanted


@pytest.mark.parametrize(
    ("text", "allowed", "none"),
    [
        ("none", {"none"}, True),
        ("scram-sha-256", {"scram-sha-256"}, False),
        ("'scram-sha-256,none'", {"scram-sha-256", "none"}, True),
        ("'!md5,!password'", {"gss", "sspi", "scram-sha-256", "oauth", "none"}, False),
        ("'!none'", {"password", "md5", "gss", "sspi", "scram-sha-256", "oauth"}, False),
    ],
)
def test_require_auth_is_libpqs_but_none_must_be_written(text: str, allowed: set[str], none: object) -> None:
    made = backend(require_auth=text)
    methods = ("password", "md5", "gss", "sspi", "scram-sha-256", "oauth", "none")
    assert {method for method in methods if made.allows_auth(method)} == allowed
    assert made.allows_none is none


def test_without_require_auth_any_challenge_will_do_and_none_does_not() -> None:
    assert backend().allows_auth("password")
    assert not backend().allows_none


@pytest.mark.parametrize("text", ["'!none,md5'", "scram", "''", "[]", "[md5, md5]", "['!!md5']"])
def test_wrong_require_auth_is_a_mistake(text: str) -> None:
    assert any(
        key.startswith("backends.primary.require_auth") for key in mistakes(None, {"require_auth": text})
    )


def test_old_tls_to_the_backend_is_refused() -> None:
    for version in ("TLSv1", "TLSv1.1"):
        assert "backends.primary.ssl_min_protocol_version" in mistakes(
            None, {"ssl_min_protocol_version": version}
        )


def test_requirepeer_needs_a_unix_host() -> None:
    assert backend(**UNIX, requirepeer="postgres").requirepeer == "postgres"
    assert "backends.primary.requirepeer" in mistakes(None, {"requirepeer": "postgres"})


def test_protocol_version_is_a_pair() -> None:
    assert backend(max_protocol_version='"3.0"').max_protocol_version == (3, 0)
    assert backend(max_protocol_version="3.2").max_protocol_version == (3, 2)
    assert "backends.primary.max_protocol_version" in mistakes(None, {"max_protocol_version": "3.1"})


def test_application_name_template_knows_its_placeholders() -> None:
    assert backend(application_name_add="off").application_name_add is None
    template = "{name}@{addr}:{port} {session}"
    assert backend(application_name_add=f'"{template}"').application_name_add == template
    for wrong in ("{user}", "{}", "{name!r}", "{name:>99}", "{name.x}", "{name", "on"):
        text = wrong if wrong == "on" else f'"{wrong}"'
        assert "backends.primary.application_name_add" in mistakes(None, {"application_name_add": text})


def test_reserved_users_are_names_of_roles() -> None:
    assert not backend(reserved_users="[]").reserved_users
    assert set(backend(reserved_users='"postgres, admin"').reserved_users) == {"postgres", "admin"}
    for wrong in ("[no]", "['']", f"[{'x' * 64}]"):
        assert any("reserved_users" in key for key in mistakes(None, {"reserved_users": wrong}))


def test_libpqs_switch_is_taken_where_libpq_has_one() -> None:
    assert [backend(sslsni=value).sslsni for value in ("0", "1", "on", "off")] == [False, True, True, False]


def test_connect_timeout_of_zero_is_no_limit() -> None:
    assert backend(connect_timeout="0").connect_timeout == 0
    assert backend(connect_timeout="250ms").connect_timeout == 0.25


@pytest.mark.parametrize("example", ["legacy", "sidecar", "central"])
def test_example_loads_without_a_warning(example: str, pytestconfig: pytest.Config) -> None:
    path = pytestconfig.rootpath / "config" / example / "pgtlsproxy.yaml"
    assert load_settings(str(path), path.read_bytes()).warnings == ()
