"""No password, key or proof in anything that a log or a traceback shows, and ClientKey in nothing that is kept."""

import base64
import gc
import hashlib
import types
from collections.abc import Callable, Iterator

import pytest

from pgtlsproxy.errors import ProxyError
from pgtlsproxy.identity import Secret
from pgtlsproxy.protocol.backend import BindingFlag
from pgtlsproxy.protocol.scram import bridge, client, server
from pgtlsproxy.protocol.scram.binding import Binding
from pgtlsproxy.protocol.scram.keys import InvalidVerifier, Keys, Verifier
from pgtlsproxy.protocol.scram.messages import read_client_final

PLAIN, PLUS = "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"
OURS, THEIRS = b"o" * 32, b"t" * 32
PASSWORD = b"canary-in-a-coal-mine"
SALT = b"0123456789abcdef"
VERIFIER = Verifier.make(Secret(PASSWORD), SALT, 2)
KEYS = Keys.derive(Secret(PASSWORD), SALT, 2)
SALTED = hashlib.pbkdf2_hmac("sha256", PASSWORD, SALT, 2)
SECRETS = {
    "password": PASSWORD,
    "SaltedPassword": SALTED,
    "ClientKey": KEYS.client_key.reveal(),
    "StoredKey": VERIFIER.stored_key.reveal(),
    "ServerKey": VERIFIER.server_key.reveal(),
}


def exchange(password: bytes = PASSWORD) -> list[object]:
    """All stages of a login through the bridge, at the client, the bridge and the backend."""
    opened = client.begin([PLUS, PLAIN], OURS)
    bridged = bridge.begin(OURS, opened.mechanism, opened.client_first, [PLUS, PLAIN], THEIRS)
    asked = server.challenge(VERIFIER, THEIRS, bridged.mechanism, bridged.client_first)
    passed_on = bridged.challenge(asked.server_first)
    answered = opened.answer(passed_on.server_first, Secret(password))
    proved = passed_on.answer(answered.client_final, VERIFIER)
    stages: list[object] = [opened, bridged, asked, passed_on, answered, proved, VERIFIER, KEYS]
    if password == PASSWORD:
        answered.check(proved.verdict(asked.verify(proved.client_final, "alice")))
    return stages


def spellings(secret: bytes) -> list[str]:
    """A secret as it could stand in a text."""
    shown = [secret.hex(), base64.b64encode(secret).decode(), repr(secret)[2:-1], secret.decode("latin-1")]
    return [*shown, secret.hex().upper()]


def assert_shows_nothing(text: str, more: list[bytes] | None = None) -> None:
    for secret in [*SECRETS.values(), *(more or [])]:
        for spelling in spellings(secret):
            assert spelling not in text


def proof_of(client_final: bytes) -> bytes:
    return base64.b64decode(client_final.rpartition(b",p=")[2])


def test_the_canaries_would_be_seen() -> None:
    with pytest.raises(AssertionError):
        assert_shows_nothing(VERIFIER.text())
    with pytest.raises(AssertionError):
        assert_shows_nothing(repr(VERIFIER.stored_key.reveal()))


@pytest.mark.parametrize("password", [PASSWORD, b"wrong"])
def test_no_stage_shows_a_secret(password: bytes) -> None:
    stages = exchange(password)
    proofs = [proof_of(stage.client_final) for stage in stages if hasattr(stage, "client_final")]
    assert len(proofs) == 2
    for stage in stages:
        for shown in (repr(stage), str(stage), f"{stage}"):
            assert_shows_nothing(shown, proofs)


def test_a_final_message_that_was_read_does_not_show_its_proof() -> None:
    asked = server.challenge(VERIFIER, None, PLAIN, b"n,,n=,r=x", nonce=b"y")
    sent = client.begin([PLAIN], None, nonce=b"x").answer(asked.server_first, Secret(PASSWORD)).client_final
    final = read_client_final(sent, Binding(BindingFlag.NOT_SUPPORTED), b"xy")
    assert final.proof == proof_of(sent)
    assert repr(final) == "ClientFinal()"


def reachable(start: object) -> Iterator[object]:
    """All that an object keeps alive, itself included; not what belongs to the whole program."""
    seen: set[int] = set()
    waiting = [start]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, type | types.ModuleType | types.FunctionType):
            continue
        seen.add(id(item))
        yield item
        waiting += gc.get_referents(item)
        if isinstance(item, Secret):
            waiting.append(item.reveal())


def test_nothing_keeps_a_client_key() -> None:
    *stages, _verifier, keys = exchange()
    kept = [item for stage in stages for item in reachable(stage) if isinstance(item, bytes)]
    assert VERIFIER.stored_key.reveal() in kept  # the search sees into secrets
    assert KEYS.client_key.reveal() in list(reachable(keys))
    for name in ("password", "SaltedPassword", "ClientKey"):
        assert not [item for item in kept if SECRETS[name] in item], name


def refused_proof() -> None:
    asked = server.challenge(VERIFIER, OURS, PLUS, b"p=tls-server-end-point,,n=,r=x")
    opened = client.begin([PLUS], OURS, nonce=b"x")
    asked.verify(opened.answer(asked.server_first, Secret(b"wrong")).client_final, "alice")


def refused_nonce() -> None:
    asked = server.challenge(VERIFIER, None, PLAIN, b"n,,n=,r=x")
    other = server.challenge(VERIFIER, None, PLAIN, b"n,,n=,r=x")
    opened = client.begin([PLAIN], None, nonce=b"x")
    asked.verify(opened.answer(other.server_first, Secret(PASSWORD)).client_final, "alice")


def refused_signature() -> None:
    opened = client.begin([PLAIN], None, nonce=b"x")
    opened.answer(b"r=xy,s=MDEyMzQ1Njc4OWFiY2RlZg==,i=2", Secret(PASSWORD)).check(b"v=" + b"A" * 43 + b"=")


def refused_verifier(text: str) -> Callable[[], object]:
    return lambda: Verifier.parse(text)


def refused_echo(message: bytes) -> Callable[[], object]:
    """A peer that knows the password sends it where it does not belong."""
    return lambda: server.challenge(VERIFIER, None, PLAIN, message)


def refused_challenge() -> None:
    client.begin([PLAIN], None, nonce=b"x").answer(b"r=xy,s=" + PASSWORD + b",i=2", KEYS)


@pytest.mark.parametrize(
    "fails",
    [
        refused_proof,
        refused_nonce,
        refused_signature,
        refused_challenge,
        refused_verifier(PASSWORD.decode()),
        refused_verifier(VERIFIER.text() + "="),
        refused_verifier(VERIFIER.text().replace(":", "$", 1)),
        refused_verifier(VERIFIER.text().replace("$2:", "$9999999:")),
        refused_verifier("SCRAM-SHA-256$4096:" + PASSWORD.decode() + "$A:B"),
        refused_echo(b"n,,n=,r=" + PASSWORD + b" "),
        refused_echo(b"n,,n=," + PASSWORD),
        refused_echo(PASSWORD),
    ],
)
def test_no_error_shows_a_secret(fails: Callable[[], object]) -> None:
    with pytest.raises((ProxyError, InvalidVerifier)) as refused:
        fails()
    error: BaseException | None = refused.value
    while error is not None:
        shown = [repr(error), str(error), *map(str, vars(error).values())]
        assert_shows_nothing("\n".join(shown))
        error = error.__cause__ or error.__context__
