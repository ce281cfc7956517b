"""The passwords that the proxy has for a backend, and where a login looks for its own."""

from __future__ import annotations

from dataclasses import dataclass

from pgtlsproxy.config import Backend
from pgtlsproxy.protocol.passfile import Passfile


@dataclass(frozen=True, slots=True)
class BackendPasswords:
    """The password files of a backend.

    Args:
        users: the users' passwords, with `login: passfile`.
        probe: the password of the role of `host_probe`; None where it needs none.
    """

    users: Passfile | None = None
    probe: Passfile | None = None

    def suffice_for(self, backend: Backend) -> bool:
        """Whether each file that the settings name is here.

        Args:
            backend: the settings.
        """
        return (backend.passfile is None or self.users is not None) and (
            probe_passfile_path(backend) is None or self.probe is not None
        )


def probe_passfile_path(backend: Backend) -> str | None:
    """The file with the password for a backend's host_probe; None where it needs none."""
    return None if backend.host_probe is None else backend.host_probe.passfile
