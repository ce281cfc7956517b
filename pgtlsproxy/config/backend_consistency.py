"""What is wrong between the settings of a backend, and what works but deserves a look."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pgtlsproxy.config.backend import SYSTEM_ROOTS, USER_PLACEHOLDER, Backend
from pgtlsproxy.config.conflict import Conflict, range_conflicts
from pgtlsproxy.config.model import PROTOCOL_VERSIONS

OLDEST_PROTOCOL_VERSION: Final = "TLSv1.2"
"""RFC 8996 deprecates what is older."""

_DANGERS: Final = {
    "verify-ca": "any certificate of its CA can be the server, for host names are not compared",
    "require": "TLS is there, but whoever is on the path can be the server",
    "prefer": "whoever is on the path can be the server, or turn TLS off",
    "disable": "everything is in clear text: whoever is on the path reads and changes it",
}


def backend_conflicts(backend: Backend) -> Iterator[Conflict]:
    """What is wrong between the settings of one backend."""
    yield from _host_conflicts(backend)
    if backend.has_tcp_host:
        yield from _tls_conflicts(backend)
    yield from _credential_conflicts(backend)
    yield from _login_conflicts(backend)
    low, high = "ssl_min_protocol_version", "ssl_max_protocol_version"
    too_old = [
        (key, version)
        for key, version in (
            (low, backend.ssl_min_protocol_version),
            (high, backend.ssl_max_protocol_version),
        )
        if version is not None
        and PROTOCOL_VERSIONS.index(version) < PROTOCOL_VERSIONS.index(OLDEST_PROTOCOL_VERSION)
    ]
    for key, version in too_old:
        yield Conflict((key,), f"{version} is too old to be safe: write TLSv1.2 or TLSv1.3")
    if not too_old:
        yield from range_conflicts(
            backend.ssl_min_protocol_version,
            backend.ssl_max_protocol_version,
            "invalid SSL protocol version range",
        )


def _host_conflicts(backend: Backend) -> Iterator[Conflict]:
    names, addresses = len(backend.host), len(backend.hostaddr)
    if not names and not addresses:
        yield Conflict(("host", "hostaddr"), "is missing: name the server, or the folder of its Unix socket")
        return
    if names and addresses and names != addresses:
        yield Conflict(
            ("hostaddr", "host"), f"could not match {names} host names to {addresses} hostaddr values"
        )
        return
    count = max(names, addresses)
    if len(backend.port) not in {1, count}:
        yield Conflict(
            ("port", "host", "hostaddr"), f"could not match {len(backend.port)} port numbers to {count} hosts"
        )
    for index, host in enumerate(backend.hosts):
        if not host.host and host.hostaddr is None:
            yield Conflict(("host", "hostaddr"), f"element {index + 1} is empty")
        elif not host.host and backend.sslmode == "verify-full":
            yield Conflict(
                ("host", "hostaddr", "sslmode"),
                "host name must be specified for a verified SSL connection: hostaddr is not enough",
            )
        elif host.is_unix and host.hostaddr is not None:
            yield Conflict(("hostaddr", "host"), f"{host.host} is a Unix socket and has no address")
    if backend.requirepeer is not None and not backend.has_unix_host:
        yield Conflict(("requirepeer", "host"), "would have no effect: no host is a Unix socket")
    if not backend.keepalives:
        for key in sorted(backend.model_fields_set):
            if key.startswith("keepalives_"):
                yield Conflict((key, "keepalives"), "would have no effect, for keepalives is off")


def _tls_conflicts(backend: Backend) -> Iterator[Conflict]:
    mode = backend.sslmode
    if mode != "verify-full" and backend.sslrootcert == SYSTEM_ROOTS:
        yield Conflict(
            ("sslmode", "sslrootcert", "host"),
            f'weak sslmode "{mode}" may not be used with sslrootcert=system (use "verify-full"): anybody can '
            "have a certificate of those issuers",
        )
    elif mode != "verify-full" and not backend.insecure_backend:
        yield Conflict(
            ("sslmode", "insecure_backend", "host"),
            f"{mode} lets whoever is on the path be the server: use verify-full, or say "
            "insecure_backend: true as well",
        )
    if mode.startswith("verify-") and backend.sslrootcert is None:
        yield Conflict(
            ("sslrootcert", "host"),
            f"is missing, and sslmode {mode} needs it: the CA's certificate, or system for the operating "
            "system's list",
        )
    if backend.sslnegotiation == "direct" and mode in {"disable", "prefer"}:
        yield Conflict(
            ("sslnegotiation", "sslmode"),
            f'weak sslmode "{mode}" may not be used with sslnegotiation=direct '
            '(use "require", "verify-ca", or "verify-full")',
        )
    if not backend.verifies_chain:
        for key in ("sslcrl", "sslcrldir"):
            if getattr(backend, key) is not None:
                yield Conflict(
                    (key, "sslmode", "sslrootcert"),
                    f"would have no effect: sslmode {mode} without sslrootcert verifies nothing",
                )


def _credential_conflicts(backend: Backend) -> Iterator[Conflict]:
    if (backend.sslcert is None) != (backend.sslkey is None):
        missing, given = ("sslkey", "sslcert") if backend.sslkey is None else ("sslcert", "sslkey")
        yield Conflict(
            (missing, given), f"is missing, and {given} is given: a certificate and its key belong together"
        )
    elif backend.sslkey is not None:
        in_key = USER_PLACEHOLDER in backend.sslkey.rpartition("/")[2]
        if backend.has_user_certificates != in_key:
            yield Conflict(
                ("sslkey", "sslcert"),
                f"{USER_PLACEHOLDER} stands in one of sslcert and sslkey: it must stand in both",
            )
    for key in ("sslpassword", "sslpassword_file"):
        if getattr(backend, key) is not None and backend.sslkey is None:
            yield Conflict((key, "sslkey"), "would have no effect without sslkey")
    if backend.sslpassword is not None and backend.sslpassword_file is not None:
        yield Conflict(("sslpassword_file", "sslpassword"), "sslpassword is given too: keep one of the two")


def _login_conflicts(backend: Backend) -> Iterator[Conflict]:
    if backend.passfile is not None and backend.login != "passfile":
        yield Conflict(("passfile", "login"), f"would have no effect with login: {backend.login}")
    yield from _host_probe_conflicts(backend)
    if backend.login == "passthrough":
        return
    if backend.login == "passfile":
        yield from _passfile_conflicts(backend)
        return
    if not backend.allows_auth("none"):
        yield Conflict(
            ("require_auth", "login"),
            "refuses every session of login: certificate, in which the backend asks for nothing but the "
            "certificate: leave it out",
        )
    if not backend.has_tcp_host:
        return
    if backend.sslcert is None and backend.sslkey is None:
        yield Conflict(
            ("sslcert", "sslkey", "login", "host", "hostaddr"),
            "is missing, and login: certificate shows it to the backend",
        )
    if backend.sslmode in {"disable", "prefer"}:
        yield Conflict(
            ("login", "sslmode"),
            f"a certificate needs TLS, and sslmode {backend.sslmode} does not demand it",
        )


def _host_probe_conflicts(backend: Backend) -> Iterator[Conflict]:
    probe, wanted = backend.host_probe, backend.target_session_attrs
    if probe is None:
        if backend.login == "passthrough" and wanted != "any":
            yield Conflict(
                ("target_session_attrs", "login", "host_probe"),
                f"{wanted} cannot work with login: passthrough alone: a host shows what it is only behind "
                "AuthenticationOk, when the client has spent its SCRAM proof on that host and cannot prove "
                "itself to the next one; say in host_probe as whom the proxy may ask the hosts beforehand, "
                "or use any, or login: certificate or passfile",
            )
        return
    if backend.login != "passthrough":
        yield Conflict(("host_probe", "login"), f"would have no effect with login: {backend.login}")
    elif wanted == "any":
        yield Conflict(
            ("host_probe", "target_session_attrs"), "would have no effect with target_session_attrs: any"
        )
    elif probe.passfile is None and backend.has_tcp_host and backend.sslcert is None:
        yield Conflict(
            ("host_probe", "sslcert", "host", "hostaddr"),
            f"has no passfile, and the backend no sslcert with which {probe.shown_user} could log in",
        )


def _passfile_conflicts(backend: Backend) -> Iterator[Conflict]:
    """What is wrong where the proxy has the users' passwords."""
    if backend.passfile is None:
        yield Conflict(
            ("passfile", "login"), "is missing, and login: passfile takes the users' passwords from it"
        )
    if not any(map(backend.allows_auth, ("scram-sha-256", "password", "md5", "none"))):
        yield Conflict(
            ("require_auth", "login"),
            "leaves the backend no way to ask for the password: list scram-sha-256, or leave it out",
        )
    is_verified = backend.sslmode.startswith("verify-") or not backend.has_tcp_host
    for method in ("password", "md5"):
        if backend.require_auth is not None and backend.allows_auth(method) and not is_verified:
            yield Conflict(
                ("require_auth", "sslmode", "login"),
                f"allows {method}, and with sslmode {backend.sslmode} whoever is on the path could be the "
                "server that is told the password: use verify-full, or scram-sha-256 alone",
            )


def backend_warnings(backend: Backend) -> Iterator[tuple[str, str]]:
    """What works at a backend and deserves a look: (key, what) pairs."""
    if not backend.has_tcp_host or backend.sslmode == "verify-full":
        return
    hosts = ", ".join(host.host or str(host.hostaddr) for host in backend.hosts if not host.is_unix)
    yield "sslmode", f"{backend.sslmode} to {hosts}: {_DANGERS[backend.sslmode]}"
