"""What is wrong between settings that are right one by one, and what works but deserves a look.

Each function yields (key, what) pairs: the setting to look at first, and what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterator

from pgtlsproxy.config.backend import SYSTEM_ROOTS, USER_PLACEHOLDER, Backend
from pgtlsproxy.config.listener import Listener
from pgtlsproxy.config.model import is_range
from pgtlsproxy.config.values import TCPAddress


def listener_mistakes(listener: Listener) -> Iterator[tuple[str, str]]:
    """What is wrong between settings that are right one by one."""
    if listener.ssl:
        for key in ("ssl_cert_file", "ssl_key_file"):
            if getattr(listener, key) is None:
                yield key, "is missing, and ssl is on: the listener needs a certificate and its key"
    else:
        for key in sorted(listener.model_fields_set):
            if key.startswith("ssl_"):
                yield key, "would have no effect, for ssl is off: set ssl to on, or leave this key out"
    if not is_range(listener.ssl_min_protocol_version, listener.ssl_max_protocol_version):
        yield (
            "ssl_max_protocol_version",
            f"could not set SSL protocol version range: {listener.ssl_max_protocol_version} is older than "
            f"ssl_min_protocol_version, which is {listener.ssl_min_protocol_version}",
        )
    if listener.ssl_ca_file is None:
        for key in ("ssl_crl_file", "ssl_crl_dir"):
            if listener.ssl and getattr(listener, key) is not None:
                yield key, "would have no effect without ssl_ca_file: no client certificate is asked for"


def listener_concerns(listener: Listener) -> Iterator[tuple[str, str]]:
    """What works and should be looked at."""
    addresses = [address for address in listener.listen if isinstance(address, TCPAddress)]
    reachable = ", ".join(str(address) for address in addresses if not address.is_loopback)
    if not listener.ssl and reachable and not listener.plaintext_from:
        yield "ssl", f"is off and plaintext_from is empty: nobody beyond this host can log in at {reachable}"


def backend_mistakes(backend: Backend) -> Iterator[tuple[str, str]]:
    """What is wrong between settings that are right one by one."""
    yield from _host_mistakes(backend)
    if backend.has_tcp_host:
        yield from _tls_mistakes(backend)
    yield from _credential_mistakes(backend)
    if not is_range("TLSv1.2", backend.ssl_min_protocol_version):
        yield (
            "ssl_min_protocol_version",
            f"{backend.ssl_min_protocol_version} is too old: TLSv1.2 or TLSv1.3",
        )
    if not is_range(backend.ssl_min_protocol_version, backend.ssl_max_protocol_version):
        yield (
            "ssl_max_protocol_version",
            f"invalid SSL protocol version range: {backend.ssl_max_protocol_version} is older than "
            f"ssl_min_protocol_version, which is {backend.ssl_min_protocol_version}",
        )


def _host_mistakes(backend: Backend) -> Iterator[tuple[str, str]]:
    count = max(len(backend.host), len(backend.hostaddr))
    if not count:
        yield "host", "is missing: name the server, or the folder of its Unix socket"
        return
    if backend.host and backend.hostaddr and len(backend.host) != len(backend.hostaddr):
        yield (
            "hostaddr",
            f"could not match {len(backend.host)} host names to {len(backend.hostaddr)} hostaddr values",
        )
        return
    if len(backend.port) not in {1, count}:
        yield "port", f"could not match {len(backend.port)} port numbers to {count} hosts"
    for index, host in enumerate(backend.hosts):
        if not host.host and host.hostaddr is None:
            yield "host", f"element {index + 1} is empty"
        elif not host.host and backend.sslmode == "verify-full":
            yield (
                "host",
                "host name must be specified for a verified SSL connection: hostaddr is not enough",
            )
        elif host.is_unix and host.hostaddr is not None:
            yield "hostaddr", f"{host.host} is a Unix socket and has no address"
    if backend.requirepeer is not None and not backend.has_unix_host:
        yield "requirepeer", "would have no effect: no host is a Unix socket"
    if backend.target_session_attrs != "any" and backend.login == "passthrough":
        yield (
            "target_session_attrs",
            f"{backend.target_session_attrs} cannot work with login: passthrough: the host's role is known "
            "only behind AuthenticationOk, when the client has spent its SCRAM proof on that host and "
            "cannot prove itself to the next one; use any, or login: certificate",
        )


def _tls_mistakes(backend: Backend) -> Iterator[tuple[str, str]]:
    if backend.sslmode != "verify-full" and backend.sslrootcert == SYSTEM_ROOTS:
        yield (
            "sslmode",
            f'weak sslmode "{backend.sslmode}" may not be used with sslrootcert=system (use "verify-full"): '
            "anybody can have a certificate of those issuers",
        )
    elif backend.sslmode != "verify-full" and not backend.insecure_backend:
        yield (
            "sslmode",
            f"{backend.sslmode} lets whoever is on the path be the server: use verify-full, or say "
            "insecure_backend: true as well",
        )
    if backend.sslmode.startswith("verify-") and backend.sslrootcert is None:
        yield (
            "sslrootcert",
            f"is missing, and sslmode {backend.sslmode} needs it: the CA's certificate, or system for the "
            "operating system's list",
        )
    if backend.sslnegotiation == "direct" and backend.sslmode in {"disable", "prefer"}:
        yield (
            "sslnegotiation",
            f'weak sslmode "{backend.sslmode}" may not be used with sslnegotiation=direct '
            '(use "require", "verify-ca", or "verify-full")',
        )
    if not backend.verifies_chain:
        for key in ("sslcrl", "sslcrldir"):
            if getattr(backend, key) is not None:
                yield (
                    key,
                    f"would have no effect: sslmode {backend.sslmode} without sslrootcert verifies nothing",
                )


def _credential_mistakes(backend: Backend) -> Iterator[tuple[str, str]]:
    if (backend.sslcert is None) != (backend.sslkey is None):
        missing, given = ("sslkey", "sslcert") if backend.sslkey is None else ("sslcert", "sslkey")
        yield missing, f"is missing, and {given} is given: a certificate and its key belong together"
    elif backend.sslcert is not None and backend.sslkey is not None:
        in_key = USER_PLACEHOLDER in backend.sslkey.rpartition("/")[2]
        if backend.has_user_certificates != in_key:
            yield (
                "sslkey",
                f"{USER_PLACEHOLDER} stands in one of sslcert and sslkey: it must stand in both",
            )
    if backend.login == "certificate" and backend.has_tcp_host:
        if backend.sslcert is None and backend.sslkey is None:
            yield "sslcert", "is missing, and login: certificate shows it to the backend"
        if backend.sslmode in {"disable", "prefer"}:
            yield "login", f"a certificate needs TLS, and sslmode {backend.sslmode} does not demand it"
    for key in ("sslpassword", "sslpassword_file"):
        if getattr(backend, key) is not None and backend.sslkey is None:
            yield key, "would have no effect without sslkey"
    if backend.sslpassword is not None and backend.sslpassword_file is not None:
        yield "sslpassword_file", "sslpassword is given too: keep one of the two"


def backend_concerns(backend: Backend) -> Iterator[tuple[str, str]]:
    """What works and should be looked at: (key, what) pairs."""
    if not backend.has_tcp_host or backend.sslmode == "verify-full":
        return
    hosts = ", ".join(host.host or str(host.hostaddr) for host in backend.hosts if not host.is_unix)
    dangers = {
        "verify-ca": "any certificate of its CA can be the server, for host names are not compared",
        "require": "TLS is there, but whoever is on the path can be the server",
        "prefer": "whoever is on the path can be the server, or turn TLS off",
        "disable": "everything is in clear text: whoever is on the path reads and changes it",
    }
    yield "insecure_backend", f"sslmode {backend.sslmode} to {hosts}: {dangers[backend.sslmode]}"
