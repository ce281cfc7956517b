"""What is wrong between the settings of listeners, and what works but deserves a look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_address

from pgtlsproxy.config.backend import Backend
from pgtlsproxy.config.conflict import Conflict, range_conflicts
from pgtlsproxy.config.listener import ANY_DATABASE, Listener
from pgtlsproxy.config.values import BadValue, TCPAddress, UnixAddress, parse_database_name
from pgtlsproxy.identity import printable


def listener_conflicts(listener: Listener) -> Iterator[Conflict]:
    """What is wrong between the settings of one listener."""
    if listener.ssl:
        for key in ("ssl_cert_file", "ssl_key_file"):
            if getattr(listener, key) is None:
                yield Conflict(
                    (key, "ssl"), "is missing, and ssl is on: the listener needs a certificate and its key"
                )
    else:
        for key in sorted(listener.model_fields_set):
            if key.startswith("ssl_"):
                yield Conflict(
                    (key, "ssl"), "would have no effect, for ssl is off: set ssl to on, or leave this key out"
                )
    yield from _destination_conflicts(listener)
    yield from range_conflicts(
        listener.ssl_min_protocol_version,
        listener.ssl_max_protocol_version,
        "could not set SSL protocol version range",
    )
    if listener.roles_file is not None and listener.roles_query is not None:
        yield Conflict(
            ("roles_query", "roles_file"), "and roles_file both say who is a member of a role: keep one"
        )
    if listener.scram_mock_secret_file is not None and not listener.has_verifiers:
        yield Conflict(
            ("scram_mock_secret_file", "scram_secrets_file", "auth_query"),
            "would have no effect without scram_secrets_file or auth_query",
        )
    if listener.expired_sessions == "close" and listener.ssl_ca_file is None:
        yield Conflict(
            ("expired_sessions", "ssl_ca_file"),
            "would have no effect without ssl_ca_file: no client certificate is asked for",
        )
    if listener.proxy_protocol_from and not listener.has_tcp:
        yield Conflict(("proxy_protocol_from", "listen"), "would have no effect: Unix sockets take no header")
    if listener.ssl and listener.ssl_ca_file is None:
        for key in ("ssl_crl_file", "ssl_crl_dir"):
            if getattr(listener, key) is not None:
                yield Conflict(
                    (key, "ssl_ca_file", "ssl"),
                    "would have no effect without ssl_ca_file: no client certificate is asked for",
                )


def _destination_conflicts(listener: Listener) -> Iterator[Conflict]:
    """What is wrong between the settings that say where sessions go on to."""
    if listener.backend is None and listener.databases is None:
        yield Conflict(
            ("backend", "databases"),
            "is missing: name one of the backends, or say in databases which database leads to which",
        )
    if listener.backend is not None and ANY_DATABASE in (listener.databases or {}):
        yield Conflict(("backend", "databases"), f'and "{ANY_DATABASE}" in databases say the same: keep one')
    queries = {"roles_query": listener.roles_query, "auth_query": listener.auth_query}
    for key, query in queries.items():
        if query is not None and query.backend is None and len(listener.backends) > 1:
            yield Conflict(
                (key, "databases", "backend"),
                "does not say which server knows the roles, and the listener leads to "
                f"{', '.join(map(printable, listener.backends))}: give it one of the backends as backend",
            )


def auth_query_problems(
    listener: Listener, backends: Mapping[str, Backend]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong between the auth_query of a listener and the backends: (where in it, what) pairs.

    Args:
        listener: its settings; the backends that it names are there.
        backends: by name.
    """
    query = listener.auth_query
    if query is None:
        return
    name = listener.backend_asked(query)
    asked = backends[name]
    if asked.has_tcp_host and not asked.sslmode.startswith("verify-"):
        yield (
            ("auth_query",),
            f"asks backend {name}, whose sslmode is {asked.sslmode}: whoever is on the path could say which "
            "passwords are right; use verify-full",
        )
    if query.passfile is None and asked.has_tcp_host and asked.sslcert is None:
        yield (
            ("auth_query", "passfile"),
            f"is missing, and backend {name} has no sslcert with which {query.shown_user} could log in",
        )
    if listener.mock_secret_file is None and any(
        backends[each].login != "passthrough" for each in listener.backends
    ):
        yield (
            ("scram_mock_secret_file",),
            "is missing: the proxy asks for passwords itself, and who has none must not show; name a file "
            "that can be made",
        )


def database_problems(listener: Listener) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong with the databases of a listener: (where in them, what) pairs."""
    if listener.databases == {}:
        yield (), "is empty: list databases with their backends, or leave the key out"
    for name, database in (listener.databases or {}).items():
        try:
            parse_database_name(name)
        except BadValue as error:
            yield (name,), str(error)
        if name == ANY_DATABASE and database.dbname is not None:
            yield (
                (name,),
                "stands for every database that is not listed, and dbname would make them all one: leave it "
                "out, or list the databases that are meant",
            )


def listen_conflicts(listeners: Mapping[str, Listener]) -> Iterator[tuple[str, int, str]]:
    """Addresses that cannot both be listened on: (listener, index in its `listen`, what)."""
    taken: list[tuple[TCPAddress | UnixAddress, str]] = []
    for name, listener in listeners.items():
        for index, address in enumerate(listener.listen):
            for other, owner in taken:
                if _overlap(address, other):
                    yield name, index, f"{address} is taken by {other} in listen of listener {owner}"
                    break
            taken.append((address, name))


def _overlap(one: TCPAddress | UnixAddress, other: TCPAddress | UnixAddress) -> bool:
    """Whether the kernel would refuse the second: the same address, or one that the other includes."""
    if isinstance(one, UnixAddress) or isinstance(other, UnixAddress):
        return one == other
    if one.port != other.port or one.port == 0:
        return False
    pairs = ((ip_address(left), ip_address(right)) for left in one.hosts for right in other.hosts)
    return any(
        left.version == right.version and (left == right or left.is_unspecified or right.is_unspecified)
        for left, right in pairs
    )


def listener_warnings(listener: Listener) -> Iterator[tuple[str, str]]:
    """What works at a listener and deserves a look: (key, what) pairs."""
    if any(network.prefixlen == 0 for network in listener.proxy_protocol_from):
        advice = "may say that it is anybody; list the load balancers alone"
        yield "proxy_protocol_from", f"lists all addresses: whoever can connect {advice}"
    if listener.ssl or listener.plaintext_from:
        return
    beyond = [
        str(address)
        for address in listener.listen
        if not (
            isinstance(address, UnixAddress) or (address.is_loopback and not listener.proxy_protocol_from)
        )
    ]
    if beyond:
        yield (
            "plaintext_from",
            f"is empty and ssl is off: nobody beyond this host can log in at {', '.join(beyond)}; set ssl to "
            "on, or list the networks that may connect in clear text",
        )
