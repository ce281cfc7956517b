"""What `check` says of SCRAM's channel binding: where clients by their defaults will not log in.

TLS ends at the proxy, so a client that binds SCRAM to the certificate that it sees binds to another one than
the server's. That fits where the listener has the users' verifiers, where both have one certificate, and
where the server offers no channel binding. Whether it does, and which certificate it has, it has to be asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256

from pgtlsproxy.errors import Mistake
from pgtlsproxy.identity import Challenge
from pgtlsproxy.policy.access import Login
from pgtlsproxy.policy.challenge import allows
from pgtlsproxy.policy.hba import ConnectionType, HbaRule, Method
from pgtlsproxy.proxy.probe import Probed
from pgtlsproxy.proxy.snapshot import BackendSnapshot, ListenerSnapshot, Snapshot

_IN_TLS: Final = frozenset({ConnectionType.HOST, ConnectionType.HOSTSSL, ConnectionType.HOSTNOGSSENC})

_WAYS_OUT: Final = (
    "set it or auth_query, let clients say channel_binding=disable, use cert with login: certificate (or "
    "password, with which the proxy sees the passwords), or give the listener the server's own certificate "
    "and key"
)


def binding_warnings(snapshot: Snapshot, probed: Sequence[Probed] | None) -> Iterator[Mistake]:
    """The listeners whose clients will meet, or may meet, the error about channel binding.

    Args:
        snapshot: what would be served.
        probed: what the backends' addresses have shown; None where nobody has asked them.
    """
    for name, listener in snapshot.listeners.items():
        if not (listener.settings.ssl and listener.settings.has_tcp) or listener.settings.has_verifiers:
            continue
        for backend in listener.backends.values():
            if not _may_relay_scram(listener, backend):
                continue
            where = _where_it_fails(listener, backend.name, probed)
            if where is not None:
                yield Mistake(
                    f"{snapshot.path}: listeners.{name}.scram_secrets_file",
                    "is not set: clients that do SCRAM in TLS by their defaults (channel_binding=prefer) "
                    f"{where}: {_WAYS_OUT}",
                )


def _may_relay_scram(listener: ListenerSnapshot, backend: BackendSnapshot) -> bool:
    """Whether a client in TLS may come to do SCRAM with a server in TLS."""
    settings = backend.settings
    if settings.login != "passthrough" or not settings.has_tcp_host or settings.sslmode == "disable":
        return False
    return settings.allows_auth("scram-sha-256") and any(
        _is_relayed(rule) and any(each.name == backend.name for each in reached)
        for rule in listener.rules.hba
        if (reached := listener.rules.databases.reached_by(rule.databases))
    )


def _is_relayed(rule: HbaRule) -> bool:
    if rule.type not in _IN_TLS or rule.method is Method.PASSWORD:
        return False
    return allows(Login.PASSTHROUGH, rule.method, Challenge.SCRAM)


def _where_it_fails(listener: ListenerSnapshot, backend: str, probed: Sequence[Probed] | None) -> str | None:
    """What is known of the backend's addresses; None where no client meets the error."""
    if probed is None:
        return (
            f"cannot log in where backend {backend} offers channel binding, as PostgreSQL does in TLS, and "
            "has another certificate than this listener (--connect finds out)"
        )
    assert listener.pair is not None  # noqa: S101 - TLS is on
    own_leaf = listener.pair.leaf.fingerprint(SHA256()).hex()
    failing = [
        each.address
        for each in probed
        if each.backend == backend
        and each.offers_channel_binding
        and each.certificate_sha256 not in {None, own_leaf}
    ]
    if not failing:
        return None
    return (
        f"cannot log in at backend {backend}, which offers channel binding and has another certificate at "
        f"{', '.join(failing)}"
    )
