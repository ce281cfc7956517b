"""The proxies' configuration files, as pure functions. What is not written is at their own defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from benchmarks.site import DATABASE, MAX_SESSIONS, SERVER_NAME, USER

ROOM: Final = MAX_SESSIONS + 200


def ours(server_port: int, workers: int, verifier: str) -> dict[str, bytes]:
    """Four listeners: TLS by SSLRequest, without and with the user's verifier, direct TLS, and in clear."""
    several = f"workers: {workers}\n" if workers > 1 else ""
    tls = "listen: ['127.0.0.1:0'], ssl: on, ssl_cert_file: proxy.crt, ssl_key_file: proxy.key"
    backend = f"host: {SERVER_NAME}, hostaddr: 127.0.0.1, port: {server_port}, sslrootcert: ca.crt"
    config = f"""\
listeners:
  tls: {{{tls}, hba_file: pg_hba.conf, backend: postgres}}
  bridged: {{{tls}, hba_file: pg_hba.conf, backend: postgres, scram_secrets_file: secrets.txt}}
  direct: {{{tls}, hba_file: pg_hba.conf, backend: direct}}
  clear: {{listen: ['127.0.0.1:0'], ssl: off, hba_file: pg_hba.conf, backend: postgres}}
backends:
  postgres: {{{backend}, login: passthrough}}
  direct: {{{backend}, login: passthrough, sslnegotiation: direct}}
max_connections: {ROOM}
log: {{format: json, level: info}}
{several}"""
    hba = f"host {DATABASE} {USER} 127.0.0.1/32 scram-sha-256\n"
    secrets = f'"{USER}" "{verifier}"\n'
    return {
        "pgtlsproxy.yaml": config.encode(),
        "pg_hba.conf": hba.encode(),
        "secrets.txt": secrets.encode(),
    }


def pgbouncer(folder: Path, port: int, server_port: int, verifier: str, processes: int) -> dict[str, bytes]:
    """Session pooling with room for everybody; it logs in with the keys of its clients' own logins."""
    settings = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "scram-sha-256",
        "auth_file": folder / "users.txt",
        "client_tls_sslmode": "allow",
        "client_tls_cert_file": folder / "proxy.crt",
        "client_tls_key_file": folder / "proxy.key",
        "server_tls_sslmode": "verify-full",
        "server_tls_ca_file": folder / "ca.crt",
        "pool_mode": "session",
        "max_client_conn": ROOM,
        "default_pool_size": MAX_SESSIONS,
        "so_reuseport": int(processes > 1),
    }
    lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
    config = f"[databases]\n{DATABASE} = host=127.0.0.1 port={server_port}\n\n[pgbouncer]\n{lines}"
    return {"pgbouncer.ini": config.encode(), "users.txt": f'"{USER}" "{verifier}"\n'.encode()}


def haproxy(folder: Path, port: int, server_port: int) -> dict[str, bytes]:
    """TCP mode. Times as long as a database session wants them."""
    config = f"""\
global
    nbthread 1
    maxconn {ROOM}
defaults
    mode tcp
    maxconn {ROOM}
    timeout connect 10s
    timeout client 1h
    timeout server 1h
frontend proxy
    bind 127.0.0.1:{port} ssl crt {folder}/proxy.pem alpn postgresql
    default_backend postgres
backend postgres
    server postgres 127.0.0.1:{server_port} ssl verify required ca-file {folder}/ca.crt \
verifyhost {SERVER_NAME} sni str({SERVER_NAME}) alpn postgresql
"""
    return {"haproxy.cfg": config.encode()}


def envoy(folder: Path, port: int, server_port: int) -> dict[str, bytes]:
    """The TCP proxy filter. Its limit of 1024 connections to a server is raised."""
    extensions = "type.googleapis.com/envoy.extensions"
    alpn = ["postgresql"]
    chain = {"filename": f"{folder}/proxy.crt"}
    key = {"filename": f"{folder}/proxy.key"}
    to_clients = {
        "@type": f"{extensions}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": alpn,
            "tls_certificates": [{"certificate_chain": chain, "private_key": key}],
        },
    }
    name = {"san_type": "DNS", "matcher": {"exact": SERVER_NAME}}
    to_server = {
        "@type": f"{extensions}.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": SERVER_NAME,
        "common_tls_context": {
            "alpn_protocols": alpn,
            # Without this its client stops at TLS 1.2; as a server it takes 1.3.
            "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
            "validation_context": {
                "trusted_ca": {"filename": f"{folder}/ca.crt"},
                "match_typed_subject_alt_names": [name],
            },
        },
    }
    tcp_proxy = {
        "@type": f"{extensions}.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "postgres",
        "cluster": "postgres",
    }
    listener = {
        "name": "proxy",
        "address": _address(port),
        "filter_chains": [
            {
                "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": to_clients},
                "filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": tcp_proxy}],
            }
        ],
    }
    cluster = {
        "name": "postgres",
        "type": "STATIC",
        "circuit_breakers": {"thresholds": [{"max_connections": ROOM, "max_pending_requests": ROOM}]},
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": to_server},
        "load_assignment": {
            "cluster_name": "postgres",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(server_port)}}]}],
        },
    }
    config = {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
    return {"envoy.json": json.dumps(config, indent=1).encode()}


def _address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def stunnel(folder: Path, port: int, between: int, server_port: int) -> dict[str, bytes]:
    """Two services, because one does TLS on one side only."""
    config = f"""\
foreground = yes
pid =
[clients]
accept = 127.0.0.1:{port}
protocol = pgsql
cert = {folder}/proxy.crt
key = {folder}/proxy.key
connect = 127.0.0.1:{between}
[server]
client = yes
accept = 127.0.0.1:{between}
protocol = pgsql
connect = 127.0.0.1:{server_port}
verifyChain = yes
CAfile = {folder}/ca.crt
checkHost = {SERVER_NAME}
"""
    return {"stunnel.conf": config.encode()}
