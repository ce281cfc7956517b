"""A client that tries to get in with what a cell gives it, and what it is told."""

from __future__ import annotations

import base64
import hashlib
import secrets
import ssl

from fixtures import wire
from fixtures.certs import Issued
from fixtures.wire import Address, Message, WireClient
from matrix.table import Verdict

OWN_WORD = "pgtlsproxy session "
"""Stands in the DETAIL of every refusal of the proxy's own, and of no backend's."""


def attempt(
    address: Address,
    *,
    user: str,
    database: str,
    tls: bool,
    certificate: Issued | None,
    secret: str | None,
) -> str:
    """Try to log in and to use the session.

    Args:
        address: of the listener.
        user, database: what the StartupMessage says.
        tls: whether to speak TLS.
        certificate: what to show there.
        secret: the password; None to leave when one is asked for.

    Returns:
        A verdict's text, or what came instead of any.
    """
    with WireClient(address) as client:
        if tls:
            assert client.ask_for_tls() == b"S"
            client.start_tls(wire.tls_context(certificate=certificate))
        try:
            client.send(wire.startup(user=user, database=database))
            message = client.read_message()
        except ssl.SSLError as error:  # in TLS 1.3 what became of the certificate shows at the first read
            return Verdict.HANDSHAKE_FAILS if error.reason == "TLSV1_ALERT_UNKNOWN_CA" else repr(error)
        challenge = Challenge(user, secret or "")
        while message.kind not in {b"E", b"Z"}:
            if message.kind == b"R" and message.code not in {0, 12}:
                if secret is None:
                    return Verdict.ASKED
                client.send(challenge.answer(message))
            message = client.read_message()
        if message.kind == b"E":
            by = "proxy" if message.fields.get("D", "").startswith(OWN_WORD) else "backend"
            return f"refused by the {by} with {message.fields['C']}"
        return _use(client, user)


def _use(client: WireClient, user: str) -> str:
    """Ask who we are; a fake backend answers with no row."""
    client.send(wire.query("SELECT session_user"))
    rows = [message.body[6:].decode() for message in client.read_until(b"Z") if message.kind == b"D"]
    return Verdict.LET_IN if rows in ([user], []) else f"let in as {rows}"


class Challenge:
    """The client's side of a login: right answers where the password is right."""

    def __init__(self, user: str, password: str) -> None:
        self._user = user
        self._password = password
        self._bare = b"n=,r=" + base64.b64encode(secrets.token_bytes(18))

    def answer(self, message: Message) -> bytes:
        """What to send for an Authentication message that asks for something."""
        match message.code:
            case 5:
                return wire.password_message(md5_answer(self._user, self._password, message.body[4:]))
            case 10 if b"SCRAM-SHA-256\x00" in message.body:
                return wire.sasl_initial_response("SCRAM-SHA-256", b"n,," + self._bare)
            case 10:
                mechanism = message.body[4:].split(b"\x00")[0].decode()
                return wire.sasl_initial_response(mechanism, self._password.encode())
            case 11:
                return wire.message(b"p", self._scram_proof(message.body[4:]))
            case _:
                return wire.password_message(self._password)

    def _scram_proof(self, server_first: bytes) -> bytes:
        found = wire.scram_attributes(server_first)
        without_proof = b"c=biws,r=" + found["r"].encode()
        key, _ = wire.scram_keys(self._password, base64.b64decode(found["s"]), int(found["i"]))
        proof = wire.scram_proof(key, b",".join((self._bare, server_first, without_proof)))
        return without_proof + b",p=" + base64.b64encode(proof)


def md5_answer(user: str, password: str, salt: bytes) -> str:
    """PostgreSQL's answer to AuthenticationMD5Password."""
    stored = hashlib.md5((password + user).encode()).hexdigest().encode()
    return "md5" + hashlib.md5(stored + salt).hexdigest()
