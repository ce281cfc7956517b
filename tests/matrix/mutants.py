"""pgtlsproxy with one of its checks taken out: `mutants.py NAME serve -c FILE`.

A test that stays green with a mutant tests nothing. Sessions are judged by workers, and so are the lines that
are loaded: the supervisor is left whole, and need not load what it has no use for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from pgtlsproxy.cli import main


def k1() -> None:
    """Whoever the backend lets in is let in."""
    from pgtlsproxy.identity import Proof, ProofKind
    from pgtlsproxy.proxy import login

    def believes_the_backend(self: Any, _proved: Any) -> Proof:
        return Proof(ProofKind.BACKEND_CHALLENGE, self._grant.user, self._grant.user)

    login._Login._proof = believes_the_backend


def k2_at_load() -> None:
    """The loader takes `trust` with the proxy's own credential for anybody."""
    from pgtlsproxy.policy import soundness

    soundness._unproven = lambda *_: None


def k2() -> None:
    """So does the session."""
    from pgtlsproxy.policy import access

    k2_at_load()
    access._is_literal_local = lambda *_: True


def k2_verifiers() -> None:
    """SCRAM without anything to check it against counts as checked."""
    from pgtlsproxy.identity import ProofKind
    from pgtlsproxy.policy import access, soundness

    table = soundness.proof

    def counts_as_checked(rule: Any, how: Any, *, has_verifiers: bool) -> ProofKind:
        return table(rule, how, has_verifiers=has_verifiers) or ProofKind.CERTIFICATE

    soundness.proof = access.proof = counts_as_checked


def scram_proof() -> None:
    """Any proof is a right one."""
    from pgtlsproxy.protocol.scram import server

    server.recover_client_key = lambda *_: b""


def password() -> None:
    """Any password is the right one."""
    from pgtlsproxy.proxy import prove

    async def believes(*_: Any) -> bool:
        return True

    prove.check_password = believes


def k3() -> None:
    """The backend may ask what it likes."""
    from pgtlsproxy.policy.challenge import Action, Verdict
    from pgtlsproxy.proxy import challenges

    challenges.judge = lambda _login, _method, code, *_, **__: Verdict(
        Action.RELAY if code else Action.FINISH
    )


def k3_requirepeer() -> None:
    """Whoever owns the Unix socket is the server."""
    from pgtlsproxy.proxy import dial

    dial._judge_unix_peer = lambda *_: None


def k4() -> None:
    """Clear text from anywhere is left to pg_hba.conf."""
    from pgtlsproxy.policy import access

    access._refuse_clear_text = lambda *_: None


def cert_presence() -> None:
    """`clientcert` asks for nothing."""
    from pgtlsproxy.policy.names import NameCheck

    NameCheck.certificate = lambda _self, request: request.certificate


def cert_name() -> None:
    """Any certificate of the CA is everybody's."""
    _without_names_where(lambda method: method != "peer")


def peer_name() -> None:
    """Any operating system user is everybody."""
    _without_names_where(lambda method: method == "peer")


def _without_names_where(is_taken_out: Callable[[str], bool]) -> None:
    from pgtlsproxy.policy.names import Checked, NameCheck

    check = NameCheck.names
    NameCheck.names = lambda self, *others: (
        Checked("anybody") if is_taken_out(self.rule.method) else check(self, *others)
    )


MUTANTS = {
    each.__name__: each
    for each in (
        k1,
        k2_at_load,
        k2,
        k2_verifiers,
        scram_proof,
        password,
        k3,
        k3_requirepeer,
        k4,
        cert_presence,
        cert_name,
        peer_name,
    )
}

if __name__ == "__main__":
    # A worker is started with all that stands before `serve`.
    mutant = MUTANTS[sys.argv.pop(1)]
    if sys.argv[1] == "worker":
        mutant()
    main(sys.argv[1:])
