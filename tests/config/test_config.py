from __future__ import annotations

import os
import re

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pgtlsproxy.config import Backend, Listener, load_settings
from pgtlsproxy.errors import ConfigError

BASE_L = {"listen": '["127.0.0.1:0"]', "ssl": "off", "hba_file": "pg_hba.conf", "backend": "primary"}
TLS_L = {**BASE_L, "ssl": "on", "ssl_cert_file": "s.crt", "ssl_key_file": "s.key"}
BASE_B = {"host": "db.example.com", "sslrootcert": "ca.crt", "login": "passthrough"}
CERT_B = {**BASE_B, "login": "certificate", "sslcert": "p.crt", "sslkey": "p.key"}


def text(listener=BASE_L, backend=BASE_B, top=(), more_listeners=None, more_backends=()):
    lines = [f"{k}: {v}" for k, v in dict(top).items()] + ["listeners:"]
    for name, listener_ in {"main": listener, **(more_listeners or {})}.items():
        lines += [f"  {name}:"] + [f"    {k}: {v}" for k, v in listener_.items() if v is not None]
    lines += ["backends:"]
    for name in ("primary", *more_backends):
        lines += [f"  {name}:"] + [f"    {k}: {v}" for k, v in backend.items() if v is not None]
    return "\n".join(lines) + "\n"


def load(y):
    return load_settings("/etc/pgtlsproxy/p.yaml", y.encode() if isinstance(y, str) else y)


def mistakes(y):
    with pytest.raises(ConfigError) as e:
        load(y)
    return [str(m) for m in e.value.mistakes]


def one(y, where, *words):
    ms = mistakes(y)
    assert len(ms) == 1, ms
    m = ms[0]
    assert m.startswith("/etc/pgtlsproxy/p.yaml:"), m
    assert where in m, m
    for w in words:
        assert w in m, m
    assert "pydantic" not in m.lower(), m
    assert "Input should" not in m, m
    return m


def test_the_smallest_configuration_has_the_documented_defaults():
    s = load(text())
    listener = s.listeners["main"]
    b = s.backends["primary"]
    assert (s.authentication_timeout, s.startup_timeout, s.max_connections, s.cancel_rate) == (
        60,
        10,
        1000,
        10,
    )
    assert s.log.format is None
    assert s.log.level == "info"
    assert list(s.warnings) == []
    assert b.sslmode == "verify-full"
    assert b.connect_timeout == 5
    assert b.max_protocol_version == (3, 2)
    assert set(b.reserved_users) == {"postgres"}
    assert b.target_session_attrs == "any"
    assert b.sslrootcert == "/etc/pgtlsproxy/ca.crt"
    assert listener.hba_file == "/etc/pgtlsproxy/pg_hba.conf"
    assert listener.unix_socket_permissions == 0o770
    assert listener.ssl_min_protocol_version == "TLSv1.2"
    assert not b.uses_own_credential
    assert listener.has_tcp
    assert not listener.has_unix


def in_clear(**k):
    return text({**BASE_L, **k})


def with_tls(**k):
    return text({**TLS_L, **k})


def with_databases(databases):
    return in_clear(backend=None, databases=databases)


def passthrough(**k):
    return text(backend={**BASE_B, **k})


def certificate(**k):
    return text(backend={**CERT_B, **k})


LM, BM = "listeners.main.", "backends.primary."
CASES = {
    "no_hba": (in_clear(hba_file=None), LM + "hba_file", "missing"),
    "no_ssl": (in_clear(ssl=None), LM + "ssl", "missing"),
    "no_login": (passthrough(login=None), BM + "login", "missing"),
    "no_listen": (in_clear(listen=None), LM + "listen", "missing"),
    "no_backend": (in_clear(backend=None), LM + "backend", "missing"),
    "empty_listen": (in_clear(listen="[]"), LM + "listen"),
    "cert_without_key": (with_tls(ssl_key_file=None), LM + "ssl_key_file"),
    "ssl_quoted": (in_clear(ssl='"on"'), LM + "ssl"),
    "ssl_1": (in_clear(ssl="1"), LM + "ssl"),
    "ssl_keys_while_off": (in_clear(ssl_cert_file="x"), LM + "ssl_cert_file"),
    "old_curve_while_off": (in_clear(ssl_ecdh_curve="prime256v1"), LM + "ssl_"),
    "min_gt_max": (
        with_tls(ssl_min_protocol_version="TLSv1.3", ssl_max_protocol_version="TLSv1.2"),
        LM + "ssl_m",
    ),
    "min_unknown": (with_tls(ssl_min_protocol_version="TLS9"), LM + "ssl_min_protocol_version", "TLSv1.3"),
    "empty_ciphers": (with_tls(ssl_ciphers='""'), LM + "ssl_ciphers"),
    "blank_ciphers": (with_tls(ssl_ciphers='" "'), LM + "ssl_ciphers"),
    "empty_tls13": (with_tls(ssl_tls13_ciphers='""'), LM + "ssl_tls13_ciphers"),
    "empty_groups": (with_tls(ssl_groups='""'), LM + "ssl_groups"),
    "both_groups": (with_tls(ssl_groups="X25519", ssl_ecdh_curve="prime256v1"), "ssl_"),
    "crl_without_ca": (with_tls(ssl_crl_file="x"), LM + "ssl_crl_file"),
    "null_ca": (with_tls(ssl_ca_file=""), LM + "ssl_ca_file"),
    "null_hba": (in_clear(hba_file=""), LM + "hba_file"),
    "mode_unquoted": (in_clear(unix_socket_permissions="0770"), LM + "unix_socket_permissions", "quote"),
    "mode_decimal": (in_clear(unix_socket_permissions="770"), LM + "unix_socket_permissions", "quote"),
    "mode_bad": (in_clear(unix_socket_permissions='"0888"'), LM + "unix_socket_permissions"),
    "sexagesimal": (in_clear(listen="[22:22]"), LM + "listen", "quote"),
    "port_missing": (in_clear(listen='["127.0.0.1"]'), LM + "listen", "port"),
    "port_big": (in_clear(listen='["127.0.0.1:70000"]'), LM + "listen"),
    "host_name_listen": (in_clear(listen='["db.example.com:1"]'), LM + "listen"),
    "v6_bare": (in_clear(listen='["::1:5432"]'), LM + "listen", "bracket"),
    "unix_relative": (in_clear(listen='["unix:run"]'), LM + "listen"),
    "unix_long": (in_clear(listen=f'["unix:/{"x" * 110}"]'), LM + "listen"),
    "plaintext_host_bits": (in_clear(plaintext_from='["10.1.2.3/8"]'), LM + "plaintext_from", "10.0.0.0/8"),
    "plaintext_bare": (in_clear(plaintext_from='["10.1.2.3"]'), LM + "plaintext_from", "/32"),
    "plaintext_v4mapped": (in_clear(plaintext_from='["::ffff:10.0.0.0/104"]'), LM + "plaintext_from"),
    "proxy_from_bare": (in_clear(proxy_protocol_from='["10.1.2.3"]'), LM + "proxy_protocol_from", "/32"),
    "proxy_from_unix": (
        in_clear(listen='["unix:/run"]', proxy_protocol_from='["10.1.2.3/32"]'),
        LM + "proxy_protocol_from",
        "Unix sockets take no header",
    ),
    "proxy_protocol_on": (passthrough(proxy_protocol="on"), BM + "proxy_protocol", "expected off, v1 or v2"),
    "proxy_protocol_2": (passthrough(proxy_protocol="2"), BM + "proxy_protocol", "expected off, v1 or v2"),
    "dup_listen_one": (in_clear(listen='["127.0.0.1:5433", "127.0.0.1:5433"]'), LM + "listen"),
    "dup_listen_star": (in_clear(listen='["127.0.0.1:5433", "*:5433"]'), LM + "listen"),
    "dup_listen_other": (
        text(
            {**BASE_L, "listen": '["127.0.0.1:5433"]'},
            more_listeners={"b": {**BASE_L, "listen": '["127.0.0.1:5433"]'}},
        ),
        "listeners.b.listen",
    ),
    "dup_unix": (in_clear(listen='["unix:/run/x", "unix:/run/x/:5432"]'), LM + "listen"),
    "backend_typo": (in_clear(backend="primry"), LM + "backend", "primary"),
    "unknown_key": (in_clear(hba_flie="x"), LM + "hba_flie", "hba_file"),
    "unknown_top": (
        text(top={"authentification_timeout": 5}),
        "authentification_timeout",
        "authentication_timeout",
    ),
    "no_host": (passthrough(host=None), BM + "host", "missing"),
    "weak_require": (passthrough(sslmode="require"), BM + "sslmode", "insecure_backend"),
    "weak_verify_ca": (passthrough(sslmode="verify-ca"), BM + "sslmode", "insecure_backend"),
    "allow": (passthrough(sslmode="allow", insecure_backend="true"), BM + "sslmode"),
    "system_weak": (
        passthrough(sslrootcert="system", sslmode="verify-ca", insecure_backend="true"),
        BM + "sslmode",
        "system",
    ),
    "no_root": (passthrough(sslrootcert=None), BM + "sslrootcert"),
    "direct_weak": (
        passthrough(sslmode="prefer", sslnegotiation="direct", insecure_backend="true"),
        BM + "sslnegotiation",
    ),
    "cert_no_key": (passthrough(sslcert="x"), BM + "sslkey"),
    "key_no_cert": (passthrough(sslkey="x"), BM + "sslcert"),
    "login_cert_without": (passthrough(login="certificate"), BM + "sslcert"),
    "login_passfile_without": (passthrough(login="passfile"), BM + "passfile", "is missing"),
    "passfile_unused": (passthrough(passfile="x"), BM + "passfile", "no effect"),
    "passfile_shown": (
        passthrough(
            login="passfile", passfile="x", sslmode="require", insecure_backend="true", require_auth="md5"
        ),
        BM + "require_auth",
        "told the password",
    ),
    "passfile_unasked": (
        passthrough(login="passfile", passfile="x", require_auth='"!scram-sha-256"'),
        BM + "require_auth",
        "no way to ask",
    ),
    "login_unknown": (passthrough(login="magic"), BM + "login", "passthrough"),
    "tsa_passthrough": (
        passthrough(target_session_attrs="read-write"),
        BM + "target_session_attrs",
        "passthrough",
        "host_probe",
    ),
    "probe_not_needed": (
        certificate(target_session_attrs="primary", host_probe="{user: probe}"),
        BM + "host_probe",
        "no effect with login: certificate",
    ),
    "probe_of_any": (
        passthrough(host_probe="{user: probe, passfile: x}"),
        BM + "host_probe",
        "no effect with target_session_attrs: any",
    ),
    "probe_without_credential": (
        passthrough(target_session_attrs="primary", host_probe="{user: probe}"),
        BM + "host_probe",
        "no passfile",
        'user "probe"',
    ),
    "probe_of_nobody": (
        passthrough(target_session_attrs="primary", host_probe="{passfile: x}"),
        BM + "host_probe.user",
        "is missing: the role that asks",
    ),
    "probe_typo": (
        passthrough(target_session_attrs="primary", host_probe="{user: probe, passfile: x, timout: 1s}"),
        BM + "host_probe.timout",
        "did you mean timeout?",
    ),
    "probe_never": (
        passthrough(target_session_attrs="primary", host_probe="{user: probe, passfile: x, interval: 0}"),
        BM + "host_probe.interval",
        "out of range",
    ),
    "tsa_unknown": (certificate(target_session_attrs="rw"), BM + "target_session_attrs", "read-write"),
    "user_folder": (certificate(sslcert="u/{user}/a.crt"), BM + "sslcert"),
    "user_one_side": (certificate(sslcert="u/{user}.crt"), BM + "ssl"),
    "min_backend": (
        passthrough(ssl_min_protocol_version="TLSv1"),
        BM + "ssl_min_protocol_version",
        "TLSv1.2",
    ),
    "range_backend": (
        passthrough(ssl_min_protocol_version="TLSv1.3", ssl_max_protocol_version="TLSv1.2"),
        BM + "ssl_m",
    ),
    "max_backend_old": (passthrough(ssl_max_protocol_version="TLSv1.1"), BM + "ssl_m"),
    "lengths": (passthrough(host="a,b", hostaddr="10.0.0.1"), BM + "hostaddr"),
    "ports": (passthrough(host="a,b", port="[1,2,3]"), BM + "port"),
    "port_quoted": (passthrough(port='"x"'), BM + "port"),
    "port0": (passthrough(port=0), BM + "port"),
    "hostaddr_name": (passthrough(hostaddr="db"), BM + "hostaddr"),
    "hostaddr_only": (passthrough(host=None, hostaddr="10.0.0.1"), BM + "host"),
    "empty_host": (passthrough(host='""'), BM + "host"),
    "require_auth": (passthrough(require_auth="scram"), BM + "require_auth", "scram-sha-256"),
    "require_auth_mixed": (passthrough(require_auth='["!none", md5]'), BM + "require_auth"),
    "require_auth_empty": (passthrough(require_auth="[]"), BM + "require_auth"),
    "reserved_map": (passthrough(reserved_users="[{a: b}]"), BM + "reserved_users"),
    "reserved_number": (passthrough(reserved_users="[5]"), BM + "reserved_users"),
    "reserved_long": (passthrough(reserved_users=f"[{'x' * 64}]"), BM + "reserved_users"),
    "proto": (passthrough(max_protocol_version='"3.1"'), BM + "max_protocol_version", "3.2"),
    "app_on": (passthrough(application_name_add="on"), BM + "application_name_add"),
    "app_attr": (passthrough(application_name_add='"{addr.__class__}"'), BM + "application_name_add"),
    "app_positional": (passthrough(application_name_add='"{}"'), BM + "application_name_add"),
    "app_spec": (passthrough(application_name_add='"{addr:>999999999}"'), BM + "application_name_add"),
    "app_nested": (passthrough(application_name_add='"{addr:{port}}"'), BM + "application_name_add"),
    "cancel": (passthrough(cancel_unknown="on"), BM + "cancel_unknown"),
    "timeout_neg": (passthrough(connect_timeout="-1"), BM + "connect_timeout"),
    "timeout_unit": (passthrough(connect_timeout="5 parsecs"), BM + "connect_timeout", "min"),
    "timeout_bool": (passthrough(connect_timeout="on"), BM + "connect_timeout"),
    "keepalive_part": (passthrough(keepalives_idle="1500ms"), BM + "keepalives_idle", "whole seconds"),
    "keepalive_long": (passthrough(keepalives_interval="1d"), BM + "keepalives_interval", "32767"),
    "keepalive_count": (passthrough(keepalives_count=128), BM + "keepalives_count", "127"),
    "keepalive_off": (
        passthrough(keepalives="off", keepalives_idle="10s"),
        BM + "keepalives_idle",
        "no effect",
    ),
    "user_timeout": (passthrough(tcp_user_timeout=30000), BM + "tcp_user_timeout", "30000ms"),
    "idle_short": (in_clear(idle_session_timeout="500ms"), "idle_session_timeout", "from 1 s"),
    "lifetime_long": (in_clear(session_lifetime="1000d"), "session_lifetime", "out of range"),
    "expired_in_clear": (in_clear(expired_sessions="close"), "expired_sessions", "no effect"),
    "client_user_timeout": (in_clear(tcp_user_timeout="2d"), "tcp_user_timeout", "out of range"),
    "requirepeer": (passthrough(requirepeer="postgres"), BM + "requirepeer"),
    "pw_both": (certificate(sslpassword="x", sslpassword_file="y"), BM + "sslpassword"),
    "pw_no_key": (passthrough(sslpassword="x"), BM + "sslpassword"),
    "abstract": (passthrough(host='"@x"'), BM + "host"),
    "host_port": (passthrough(host='"db:5432"'), BM + "host", "port"),
    "workers_0": (text(top={"workers": 0}), "workers", "auto"),
    "workers_many": (text(top={"workers": 65}), "workers", "64"),
    "workers_word": (text(top={"workers": "many"}), "workers", "auto"),
    "host_label": (passthrough(host="a" * 64 + ".example"), BM + "host", "1 to 63"),
    "host_empty_label": (passthrough(host="db..example"), BM + "host", "1 to 63"),
    "host_two_dots": (passthrough(host="db.example.."), BM + "host", "1 to 63"),
    "host_long": (passthrough(host=".".join(["a" * 63] * 4)), BM + "host", "253"),
    "workers_true": (text(top={"workers": "true"}), "workers"),
    "status_listen": (text(top={"status": "{hosts: [a]}"}), "status.listen", "is missing", "127.0.0.1:9643"),
    "status_unix": (text(top={"status": '{listen: "unix:/run"}'}), "status.listen", "TCP"),
    "status_host": (text(top={"status": '{listen: "*:1", hosts: "a:80"}'}), "status.hosts", "without a port"),
    "status_no_key": (
        text(top={"status": '{listen: "*:1", ssl_cert_file: x}'}),
        "status",
        "ssl_key_file is missing",
    ),
    "status_ca": (text(top={"status": '{listen: "*:1", ssl_ca_file: x}'}), "status", "no effect"),
    "status_quit": (
        text(top={"status": '{listen: "*:1", quitquitquit: "yes"}'}),
        "status.quitquitquit",
        "expected on or off",
    ),
    "reload_short": (text(top={"reload_interval": "50ms"}), "reload_interval", "SIGHUP alone"),
    "reload_long": (text(top={"reload_interval": "2d"}), "reload_interval", "86400 s"),
    "reload_unit": (text(top={"reload_interval": "10 seconds"}), "reload_interval"),
    "auth_long": (text(top={"authentication_timeout": "11min"}), "authentication_timeout"),
    "auth_zero": (text(top={"authentication_timeout": "0"}), "authentication_timeout"),
    "auth_sexagesimal": (text(top={"authentication_timeout": "1:30"}), "authentication_timeout", "quote"),
    "max_conn_0": (text(top={"max_connections": "0"}), "max_connections"),
    "max_conn_bool": (text(top={"max_connections": "true"}), "max_connections"),
    "max_conn_text": (text(top={"max_connections": '"10"'}), "max_connections"),
    "max_conn_float": (text(top={"max_connections": "10.0"}), "max_connections"),
    "max_pending_0": (text(top={"max_pending": "0"}), "max_pending"),
    "max_pending_text": (text(top={"max_pending": '"10"'}), "max_pending"),
    "cancel_neg": (text(top={"cancel_rate": "-1"}), "cancel_rate"),
    "log_format": (text(top={"log": "{format: xml}"}), "log.format", "json"),
    "log_key": (text(top={"log": "{levle: info}"}), "log.levle", "level"),
    "log_list": (text(top={"log": "[1]"}), "log"),
    "roles_query_user": (
        in_clear(roles_query="{lifetime: 5s}"),
        LM + "roles_query.user",
        "the role that asks",
    ),
    "roles_query_key": (
        in_clear(roles_query="{user: a, usr: b}"),
        LM + "roles_query.usr",
        "did you mean user",
    ),
    "roles_query_time": (
        in_clear(roles_query="{user: a, lifetime: 0}"),
        LM + "roles_query.lifetime",
        "out of range",
    ),
    "roles_query_list": (in_clear(roles_query="[a]"), LM + "roles_query", "expected settings"),
    "database_backend": (with_databases("{a: nowhere}"), LM + "databases.a", "no backend", "primary"),
    "database_backend_long": (
        with_databases("{a: {backend: primry}}"),
        LM + "databases.a",
        "did you mean primary?",
    ),
    "database_number": (with_databases("{a: 5}"), LM + "databases.a", "the name of a backend"),
    "database_nothing": (with_databases("{a: {}}"), LM + "databases.a.backend", "is missing"),
    "database_null": (with_databases("{a: }"), LM + "databases.a", "no value"),
    "database_unknown_key": (
        with_databases("{a: {backend: primary, dbnam: b}}"),
        LM + "databases.a.dbnam",
        "did you mean dbname?",
    ),
    "database_key_of_a_backend": (
        with_databases("{a: {backend: primary, host: b}}"),
        LM + "databases.a.host",
        "a setting of a backend",
    ),
    "dbname_number": (with_databases("{a: {backend: primary, dbname: 5}}"), LM + "databases.a.dbname"),
    "dbname_empty": (with_databases('{a: {backend: primary, dbname: ""}}'), LM + "databases.a.dbname"),
    "dbname_nul": (
        with_databases(r'{a: {backend: primary, dbname: "a\0b"}}'),
        LM + "databases.a.dbname",
        "NUL",
    ),
    "dbname_of_all": (
        with_databases('{"*": {backend: primary, dbname: b}}'),
        LM + 'databases."*"',
        "list the databases that are meant",
    ),
    "database_name_long": (with_databases(f"{{{'a' * 64}: primary}}"), LM + "databases.aaa", "63 bytes"),
    "database_name_number": (with_databases("{5: primary}"), LM + "databases", "quote"),
    "databases_empty": (with_databases("{}"), LM + "databases", "is empty"),
    "databases_text": (with_databases("primary"), LM + "databases", "database: backend"),
    "databases_list": (with_databases("[a, b]"), LM + "databases", "database: backend"),
    "databases_and_backend": (
        in_clear(databases='{"*": primary}'),
        LM + "backend",
        "keep one",
    ),
    "roles_query_of_several": (
        text({**BASE_L, "databases": "{a: other}", "roles_query": "{user: x}"}, more_backends=["other"]),
        LM + "roles_query",
        "other, primary",
    ),
    "roles_query_backend": (
        in_clear(roles_query="{user: a, backend: x}"),
        LM + "roles_query.backend",
        "no backend",
    ),
    "roles_query_and_file": (
        in_clear(roles_query="{user: a}", roles_file="x"),
        LM + "roles_query",
        "keep one",
    ),
    "auth_query_user": (in_clear(auth_query="{lifetime: 5s}"), LM + "auth_query.user", "the role that asks"),
    "auth_query_key": (
        in_clear(auth_query="{user: a, usr: b}"),
        LM + "auth_query.usr",
        "did you mean user",
    ),
    "auth_query_time": (
        in_clear(auth_query="{user: a, lifetime: 2d}"),
        LM + "auth_query.lifetime",
        "out of range",
    ),
    "auth_query_without_a_name": (
        in_clear(auth_query='{user: a, passfile: p, query: "SELECT 1"}'),
        LM + "auth_query.query",
        "$1",
    ),
    "auth_query_list": (in_clear(auth_query="[a]"), LM + "auth_query", "expected settings"),
    "auth_query_of_several": (
        text(
            {**BASE_L, "databases": "{a: other}", "auth_query": "{user: x, passfile: p}"},
            more_backends=["other"],
        ),
        LM + "auth_query",
        "other, primary",
    ),
    "auth_query_backend": (
        in_clear(auth_query="{user: a, passfile: p, backend: x}"),
        LM + "auth_query.backend",
        "no backend",
    ),
    "auth_query_without_a_password": (
        in_clear(auth_query="{user: a}"),
        LM + "auth_query.passfile",
        "is missing",
        'user "a"',
    ),
    "auth_query_without_a_mock_secret": (
        text(
            {**BASE_L, "auth_query": "{user: a, passfile: p}"},
            {**BASE_B, "login": "passfile", "passfile": "p"},
        ),
        LM + "scram_mock_secret_file",
        "is missing",
    ),
    "auth_query_unverified": (
        text(
            {**BASE_L, "auth_query": "{user: a, passfile: p}"},
            {**BASE_B, "sslmode": "require", "insecure_backend": "true"},
        ),
        LM + "auth_query",
        "use verify-full",
    ),
    "mock_secret_alone": (
        in_clear(scram_mock_secret_file="m"),
        LM + "scram_mock_secret_file",
        "auth_query",
    ),
    "sslsni_2": (passthrough(sslsni="2"), BM + "sslsni"),
    "insecure_text": (passthrough(insecure_backend='"yes"'), BM + "insecure_backend"),
    "warnings_key": (text(top={"warnings": "[]"}), "warnings"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_setting_is_one_mistake_with_its_line_and_key(name):
    y, where, *words = CASES[name]
    one(y, where, *words)


LATER = {
    "": "console dns_cache",
    "b": "sslcert_issuer sslkey_issuer sslcert_lifetime",
}


@pytest.mark.parametrize(("level", "key"), [(a, k) for a, ks in LATER.items() for k in ks.split()])
def test_a_setting_to_come_is_refused_and_never_ignored(level, key):
    y = {"": text(top={key: 1}), "l": in_clear(**{key: 1}), "b": passthrough(**{key: 1})}[level]
    one(y, key, "not in this version")


def test_every_mistake_is_told_at_once():
    ms = "\n".join(
        mistakes(
            text(
                {
                    **TLS_L,
                    "ssl_key_file": None,
                    "hba_flie": "x",
                    "ssl_ciphers": '""',
                    "unix_socket_permissions": "0770",
                },
                {**BASE_B, "sslmode": "require", "login": "magic", "port": 0},
                top={"workers": 0, "max_handshakes": 0},
            )
        )
    )
    for key in (
        "ssl_key_file",
        "hba_flie",
        "ssl_ciphers",
        "unix_socket_permissions",
        "sslmode",
        "login",
        "port",
        "workers",
        "max_handshakes",
    ):
        assert key in ms, f"not reported: {key}\n{ms}"


def test_both_missing_sections_are_told():
    ms = "\n".join(mistakes("workers: 1\n"))
    assert "listeners" in ms
    assert "backends" in ms


@pytest.mark.parametrize(
    "y",
    [
        "",
        "[]",
        "5",
        "listeners: 5\nbackends: []\n",
        "listeners: {a: 5}\nbackends: {p: }\n",
        "listeners: {}\nbackends: {}\n",
    ],
)
def test_what_is_no_mapping_is_refused(y):
    mistakes(y)


def test_a_mistake_names_the_line_of_its_key():
    y = text({**BASE_L, "nope": 1})
    line = y.split("\n").index("    nope: 1") + 1
    assert mistakes(y)[0].startswith(f"/etc/pgtlsproxy/p.yaml:{line}: listeners.main.nope"), mistakes(y)


def test_what_works_but_is_dangerous_is_warned_of():
    assert any("plaintext_from" in str(w) for w in load(in_clear(listen='["0.0.0.0:0"]')).warnings)
    assert any("plaintext_from" in str(w) for w in load(in_clear(listen='["*:0"]')).warnings)
    assert not load(in_clear(listen='["0.0.0.0:0"]', plaintext_from='["10.0.0.0/8"]')).warnings
    assert not load(in_clear(listen='["localhost:0", "unix:/run/x"]')).warnings
    assert load(passthrough(sslmode="require", insecure_backend="true")).warnings
    for network in ("0.0.0.0/0", "::/0"):
        listener = in_clear(plaintext_from='["10.0.0.0/8"]', proxy_protocol_from=f'["{network}"]')
        assert any("anybody" in str(w) for w in load(listener).warnings)


def test_behind_a_load_balancer_clients_come_from_everywhere():
    """Whoever it brings to loopback needs TLS or plaintext_from, too."""
    behind = {"listen": '["127.0.0.1:0"]', "proxy_protocol_from": '["127.0.0.1/32"]'}
    assert any("plaintext_from" in str(w) for w in load(in_clear(**behind)).warnings)
    assert not load(in_clear(**behind, plaintext_from='["10.0.0.0/8"]')).warnings


@pytest.mark.parametrize(("said", "meant"), [("off", None), ("v1", "v1"), ("v2", "v2")])
def test_proxy_protocol_is_off_or_a_version(said, meant):
    assert load(passthrough(proxy_protocol=said)).backends["primary"].proxy_protocol == meant


def test_the_proxys_own_credential_is_known_for_what_it_is():
    s = load(text(backend={"host": "/run/postgresql", "login": "certificate"}))
    b = s.backends["primary"]
    assert b.uses_own_credential
    assert b.has_unix_host
    assert not list(s.warnings)
    assert (
        load(text(backend={"host": "/run/postgresql", "login": "passthrough"}))
        .backends["primary"]
        .uses_own_credential
    )
    assert load(passthrough(sslcert="a", sslkey="b")).backends["primary"].uses_own_credential


def test_lists_and_times_are_libpqs_and_postgresqls():
    b = load(certificate(host="a, b ,c", port="1,,3", connect_timeout="500ms")).backends["primary"]
    assert [(h.host, h.port) for h in b.hosts] == [
        ("a", 1),
        ("b", 5432),
        ("c", 3),
    ]
    assert b.connect_timeout == 0.5
    s = load(text(top={"authentication_timeout": "1min", "reload_interval": "0", "workers": 1}))
    assert s.authentication_timeout == 60


def test_as_many_workers_as_it_says_and_auto_is_one_for_each_core_that_we_may_use():
    assert [load(text(top={"workers": n})).workers for n in (1, 2, 64)] == [1, 2, 64]
    assert load(text(top={"workers": "auto"})).workers == min(len(os.sched_getaffinity(0)), 64)
    assert load(text()).workers == 1


def test_a_quarter_of_max_connections_may_be_unproven_where_nothing_else_is_said():
    for top, limit in (
        ({}, 250),
        ({"max_connections": 8}, 16),
        ({"max_connections": 8, "max_pending": 3}, 3),
    ):
        assert load(text(top=top)).pending_limit == limit


def test_host_names_may_be_as_long_as_those_of_the_dns():
    longest = ".".join(["a" * 63] * 3 + ["a" * 61])
    for host in (longest, longest + ".", "db_1.example.com.", "xn--bcher-kva.example"):
        assert load(passthrough(host=host)).backends["primary"].host == (host,)


def test_a_passphrase_is_in_no_repr():
    s = load(certificate(sslpassword="hunter2"))
    b = s.backends["primary"]
    assert "hunter2" not in repr(s) + str(b)
    assert b.has_inline_secret


@pytest.mark.parametrize("v", ["12345678", "[hunter2]", "{hunter2: x}", "0123", "1:30", "true"])
def test_a_passphrase_is_in_no_mistake(v):
    m = "\n".join(mistakes(certificate(sslpassword=v)))
    assert "hunter2" not in m, m
    assert v not in m, m


def test_settings_are_frozen():
    s = load(text())
    for o, k in ((s, "max_connections"), (s.listeners["main"], "ssl"), (s.backends["primary"], "login")):
        with pytest.raises(ValidationError):
            setattr(o, k, 1)


def test_databases_lead_to_backends_and_backend_is_short_for_all_others():
    databases = "{crm: primary, crm_ro: {backend: other, dbname: crm}}"
    listener = load(text({**BASE_L, "databases": databases}, more_backends=["other"])).listeners["main"]
    found = {name: (each.backend, each.dbname) for name, each in listener.destinations.items()}
    assert found == {"crm": ("primary", None), "crm_ro": ("other", "crm"), "*": ("primary", None)}
    assert listener.backends == ("primary", "other")
    star = load(with_databases('{a: primary, "*": primary}')).listeners["main"]
    assert (list(star.destinations), star.backends) == (["a", "*"], ("primary",))
    assert list(load(with_databases("{a: primary}")).listeners["main"].destinations) == ["a"]


def test_ssl_ecdh_curve_is_ssl_groups():
    assert load(with_tls(ssl_ecdh_curve="prime256v1")).listeners["main"].ssl_groups == "prime256v1"


def test_a_listener_knows_whether_others_can_reach_it():
    assert load(in_clear(listen='["localhost:0","unix:/x"]')).listeners["main"].all_loopback
    assert not load(in_clear(listen='["*:0"]')).listeners["main"].all_loopback


def test_paths_start_at_the_files_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_settings("p.yaml", text().encode()).listeners["main"].hba_file == f"{tmp_path}/pg_hba.conf"


def test_mistakes_speak_plainly():
    for name, (y, *_) in CASES.items():
        for m in mistakes(y):
            assert not re.search(
                r"pydantic|Input should|valid (string|tuple|boolean|integer|dictionary)|Value error|at least \d+ item",
                m,
            ), (name, m)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 99999)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["on", "a,b", "{user}", "/x", "10s", "[::1]:1", "*:1", "TLSv1.3"]),
    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=5), c, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(st.sampled_from(sorted(Listener.model_fields)), values, max_size=8),
    st.dictionaries(st.sampled_from(sorted(Backend.model_fields)), values, max_size=8),
    st.booleans(),
)
def test_any_yaml_is_settings_or_mistakes(listener, backend, base):
    bl = {"listen": ["127.0.0.1:0"], "ssl": False, "hba_file": "h", "backend": "primary"} if base else {}
    bb = {"host": "x", "sslrootcert": "c", "login": "passthrough"} if base else {}
    doc = yaml.safe_dump({"listeners": {"m": {**bl, **listener}}, "backends": {"primary": {**bb, **backend}}})
    told: tuple = ()
    try:
        load(doc)
    except ConfigError as error:
        told = tuple(map(str, error.mistakes)) or ("pydantic: an error without a mistake",)
    for m in told:
        assert not re.search(r"pydantic|Input should|Value error|codec", m), m
