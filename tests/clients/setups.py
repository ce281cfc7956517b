"""The ways in which a proxy and a server are set up for passwords: the columns of the matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from fixtures.auth_query import AUTH_QUERY
from fixtures.auth_query import FILES as AUTH_QUERY_FILES
from fixtures.certs import Certs
from fixtures.deployments import Config, in_clear, passthrough, with_certificate, with_tls
from fixtures.drivers import Target
from fixtures.postgres import ROLES, password
from fixtures.proxy import RunningProxy
from fixtures.scram_secrets import secrets_file
from pgtlsproxy.demo.postgres import Cluster

SERVER_HBA = (
    "hostssl bob all all cert map=pgtlsproxy\n"
    "hostssl all all all scram-sha-256\n"
    "local all all scram-sha-256\n"
)
"""The server believes the proxy's certificate for one database, and asks for passwords for the others."""

SERVER_IDENT = "pgtlsproxy pgtlsproxy alice\n"

TLS_VERSIONS = ("TLSv1.2", "TLSv1.3")

SECRETS = {"scram_secrets_file": "secrets.txt"}


class Asked(Enum):
    """What a client is asked for."""

    BOUND = auto()
    """SCRAM, with and without channel binding."""

    UNBOUND = auto()
    """SCRAM without channel binding, also of clients that miss it."""

    UNBOUND_BY_SERVER = auto()
    """SCRAM without channel binding, by a server that offers it: clients that miss it are refused."""

    PASSWORD = auto()
    NOTHING = auto()


@dataclass(frozen=True, slots=True)
class Setup:
    """One way.

    Args:
        name: as the manual has it.
        asked: of the client.
        words: what the manual says of the client's leg, the server's leg, `login` and the method.
        listener: the listener's settings more than the usual.
        backend: the backend's name, see `_backends`.
        same_leaf: whether the listener shows the server's certificate.
        clear: whether the client's leg has no TLS.
    """

    name: str
    asked: Asked
    words: tuple[str, str, str, str]
    listener: Config
    backend: str = "TLS"
    same_leaf: bool = False
    clear: bool = False


_THROUGH, _KNOWING = "`passthrough`", "`passthrough`, with `scram_secrets_file`"
_SCRAM = "`scram-sha-256`"

SETUPS = (
    Setup("verifiers", Asked.BOUND, ("TLS", "TLS", _KNOWING, _SCRAM), SECRETS),
    Setup("auth_query", Asked.BOUND, ("TLS", "TLS", "`passthrough`, with `auth_query`", _SCRAM), {"auth_query": AUTH_QUERY}),
    Setup("none", Asked.UNBOUND_BY_SERVER, ("TLS", "TLS", _THROUGH, _SCRAM), {}),
    Setup("same certificate", Asked.BOUND, ("TLS", "TLS, with the proxy's certificate and key", _THROUGH, _SCRAM), {}, same_leaf=True),
    Setup("Unix socket", Asked.UNBOUND, ("TLS", "Unix socket", _THROUGH, _SCRAM), {}, "socket"),
    Setup("in clear", Asked.UNBOUND_BY_SERVER, ("in clear", "TLS", _THROUGH, _SCRAM), {}, clear=True),
    Setup("in clear, verifiers", Asked.UNBOUND, ("in clear", "TLS", _KNOWING, _SCRAM), SECRETS, clear=True),
    Setup("certificate", Asked.BOUND, ("TLS", "TLS", "`certificate`, with `scram_secrets_file`", _SCRAM), SECRETS, "certificate"),
    Setup("passfile", Asked.BOUND, ("TLS", "TLS", "`passfile`, with `scram_secrets_file`", _SCRAM), SECRETS, "passfile"),
    Setup("cert", Asked.NOTHING, ("TLS", "TLS", "`certificate`", "`cert`"), {"hba_file": "cert.conf"}, "certificate"),
    Setup("password", Asked.PASSWORD, ("TLS", "TLS", _THROUGH, "`password`"), {"hba_file": "password.conf"}),
)  # fmt: skip
"""The columns of the matrix."""

HBA_FILES = {
    "pg_hba.conf": "host all all all scram-sha-256\n",
    "cert.conf": "hostssl all all all cert\n",
    "password.conf": "hostssl all all all password\n",
}


@dataclass(frozen=True, slots=True)
class Way:
    """A set-up with a version of TLS on the legs that have it."""

    setup: Setup
    tls: str

    @property
    def listener(self) -> str:
        return f"{self.setup.name}-{self.tls}".replace(",", "").replace(" ", "_")

    def target(self, running: RunningProxy, certs: Certs) -> Target:
        """alice, with all that she has."""
        return Target(
            port=running.port(self.listener), user="alice",
            database="bob" if self.setup.backend == "certificate" else "alice", password=password("alice"),
            ca=None if self.setup.clear else certs.ca.crt,
            certificate=certs.client("alice") if self.setup.asked is Asked.NOTHING else None,
        )  # fmt: skip


WAYS = tuple(Way(setup, tls) for setup in SETUPS for tls in TLS_VERSIONS)


def configuration(cluster: Cluster, certs: Certs) -> tuple[Config, Mapping[str, str]]:
    """A proxy with a listener for each way, and its files."""
    other_leaf = certs.ca.server("localhost")
    listeners: dict[str, Config] = {}
    for way in WAYS:
        settings = way.setup.listener | {"backend": f"{way.setup.backend}-{way.tls}"}
        if not way.setup.clear:
            settings |= {"ssl_max_protocol_version": way.tls, "ssl_min_protocol_version": way.tls}
        leaf = certs.server if way.setup.same_leaf else other_leaf
        listeners[way.listener] = (
            in_clear(**settings) if way.setup.clear else with_tls(certs, leaf, **settings)
        )
    secret = password("alice").replace("\\", "\\\\").replace(":", "\\:")
    files = (
        HBA_FILES
        | AUTH_QUERY_FILES
        | {
            "secrets.txt": secrets_file(cluster, *ROLES),
            "passfile": f"localhost:*:*:alice:{secret}\n",
        }
    )
    return {"listeners": listeners, "backends": _backends(cluster, certs)}, files


def _backends(cluster: Cluster, certs: Certs) -> dict[str, Config]:
    kinds: dict[str, Callable[..., Config]] = {
        "TLS": lambda **settings: passthrough(cluster, certs, **settings),
        "certificate": lambda **settings: with_certificate(cluster, certs, **settings),
        "passfile": lambda **settings: passthrough(
            cluster, certs, login="passfile", passfile="passfile", **settings
        ),
        "socket": lambda **_: {"host": cluster.socket_dir, "port": cluster.port, "login": "passthrough"},
    }
    return {
        f"{name}-{tls}": make(ssl_min_protocol_version=tls, ssl_max_protocol_version=tls)
        for name, make in kinds.items()
        for tls in TLS_VERSIONS
    }
