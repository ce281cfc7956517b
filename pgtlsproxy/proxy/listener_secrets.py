"""What a listener's policy needs to know of passwords, where a reload takes some of it and not all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pgtlsproxy.config import Backend, Listener
from pgtlsproxy.protocol.passfile import Passfile
from pgtlsproxy.protocol.scram.secrets import Secrets


def lacks_mock_secret(secrets: Secrets | None, destinations: Iterable[Backend]) -> bool:
    """Whether users without a verifier would show, for the proxy asks for passwords and cannot ask them.

    Args:
        secrets: the verifiers.
        destinations: the backends that sessions go on to.
    """
    asks = any(backend.login != "passthrough" for backend in destinations)
    return asks and secrets is not None and secrets.mock_secret is None


def secrets_of_kept_policy(
    kept: Listener, in_service: Secrets | None, settings: Listener, newest: Secrets | None
) -> Secrets | None:
    """The verifiers of a policy that stays in service: the newest of its own file, with its mock secret.

    Args:
        kept: the listener in service.
        in_service: its verifiers.
        settings: what was to take its place.
        newest: the verifiers for those.
    """
    if newest is None or settings.scram_secrets_file != kept.scram_secrets_file or not kept.has_verifiers:
        return in_service
    if newest.mock_secret is None and in_service is not None:
        return replace(newest, mock_secret=in_service.mock_secret)
    return newest


def passfile_of_kept_policy(
    kept: Listener, in_service: Passfile | None, settings: Listener, newest: Passfile | None
) -> Passfile | None:
    """The password for auth_query of a policy that stays in service: the newest of its own file.

    Args:
        kept: the listener in service.
        in_service: its password.
        settings: what was to take its place.
        newest: the password for those.
    """
    return in_service if auth_passfile_path(kept) != auth_passfile_path(settings) else newest


def auth_passfile_path(listener: Listener) -> str | None:
    """The file with the password for a listener's auth_query; None where it needs none."""
    return None if listener.auth_query is None else listener.auth_query.passfile
