"""What a backend may ask during the login.

A backend's request goes to the client only where the line of pg_hba.conf and the client's leg allow it: one
that asks for a weaker proof than the line demands, or for a password in clear over a leg that others can
read, is misbehaving.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pgtlsproxy.identity import Challenge, printable
from pgtlsproxy.policy.hba import Method
from pgtlsproxy.policy.proofs import Login


class ClientLeg(enum.Enum):
    """Who could read what the client answers."""

    SECURE = enum.auto()
    """TLS: nobody."""
    CLEAR_LOCAL = enum.auto()
    """Clear text over loopback or a Unix socket: nobody but this host."""
    CLEAR_REMOTE = enum.auto()
    """Clear text from afar: anybody on the path."""


class Action(enum.Enum):
    """What to do with an Authentication message of the backend."""

    RELAY = enum.auto()
    """Pass it to the client, whose turn it is then (not after SASLFinal)."""
    FINISH = enum.auto()
    """AuthenticationOk where it may come; whether a proof is there is judged apart."""
    REFUSE = enum.auto()
    """End the session: the backend misbehaved."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, and for the log why a message is refused (else empty)."""

    action: Action
    reason: str = ""


_OK, _CLEARTEXT, _MD5, _GSS, _GSS_CONTINUE, _SASL, _SASL_CONTINUE, _SASL_FINAL = 0, 3, 5, 7, 8, 10, 11, 12

_NAMES = MappingProxyType(
    {
        _OK: "AuthenticationOk",
        1: "AuthenticationKerberosV4",
        2: "AuthenticationKerberosV5",
        _CLEARTEXT: "AuthenticationCleartextPassword",
        4: "AuthenticationCryptPassword",
        _MD5: "AuthenticationMD5Password",
        6: "AuthenticationSCMCredential",
        _GSS: "AuthenticationGSS",
        _GSS_CONTINUE: "AuthenticationGSSContinue",
        9: "AuthenticationSSPI",
        _SASL: "AuthenticationSASL",
        _SASL_CONTINUE: "AuthenticationSASLContinue",
        _SASL_FINAL: "AuthenticationSASLFinal",
    }
)

_Order = Mapping[int | None, frozenset[int]]

_AT_ONCE: _Order = MappingProxyType({None: frozenset({_OK})})
_ANY_CHALLENGE: _Order = MappingProxyType(
    {
        None: frozenset({_OK, _CLEARTEXT, _MD5, _GSS, _SASL}),
        _CLEARTEXT: frozenset({_OK}),
        _MD5: frozenset({_OK}),
        _GSS: frozenset({_GSS_CONTINUE, _OK}),
        _GSS_CONTINUE: frozenset({_GSS_CONTINUE, _OK}),
        _SASL: frozenset({_SASL_CONTINUE, _OK}),
        _SASL_CONTINUE: frozenset({_SASL_CONTINUE, _SASL_FINAL, _OK}),
        _SASL_FINAL: frozenset({_OK}),
    }
)
_FINISHED_SCRAM: _Order = MappingProxyType(
    {
        None: frozenset({_SASL}),
        _SASL: frozenset({_SASL_CONTINUE}),
        _SASL_CONTINUE: frozenset({_SASL_FINAL}),
        _SASL_FINAL: frozenset({_OK}),
    }
)

_PASSWORD: _Order = MappingProxyType({None: frozenset({_CLEARTEXT}), _CLEARTEXT: frozenset({_OK})})
_SCRAM_OR_MD5: _Order = MappingProxyType(
    {**_FINISHED_SCRAM, None: frozenset({_SASL, _MD5}), _MD5: frozenset({_OK})}
)
_SCRAM_OR_CLEARTEXT: _Order = MappingProxyType(
    {**_FINISHED_SCRAM, None: frozenset({_SASL, _CLEARTEXT}), _CLEARTEXT: frozenset({_OK})}
)

_GSSAPI: _Order = MappingProxyType(
    {
        None: frozenset({_GSS}),
        _GSS: frozenset({_GSS_CONTINUE, _OK}),
        _GSS_CONTINUE: frozenset({_GSS_CONTINUE, _OK}),
    }
)
_OAUTH: _Order = MappingProxyType(
    {None: frozenset({_SASL}), _SASL: frozenset({_SASL_CONTINUE, _OK}), _SASL_CONTINUE: frozenset({_OK})}
)

_OWN_PASSWORD: _Order = MappingProxyType(
    {
        **_SCRAM_OR_CLEARTEXT,
        None: frozenset({_OK, _SASL, _CLEARTEXT, _MD5}),
        _MD5: frozenset({_OK}),
    }
)
"""What the proxy can answer with a password of its own; which of it may be, `require_auth` says."""

ORDERS: Mapping[tuple[Login, Method], _Order] = MappingProxyType(
    {
        (Login.PASSTHROUGH, Method.TRUST): _ANY_CHALLENGE,
        (Login.PASSTHROUGH, Method.CERT): _ANY_CHALLENGE,
        (Login.PASSTHROUGH, Method.PEER): _ANY_CHALLENGE,
        (Login.PASSTHROUGH, Method.SCRAM_SHA_256): _FINISHED_SCRAM,
        (Login.PASSTHROUGH, Method.PASSWORD): _SCRAM_OR_CLEARTEXT,
        (Login.PASSTHROUGH, Method.MD5): _SCRAM_OR_MD5,
        **{(Login.PASSTHROUGH, method): _PASSWORD for method in Method if method.asks_for_password},
        (Login.PASSTHROUGH, Method.GSS): _GSSAPI,
        (Login.PASSTHROUGH, Method.OAUTH): _OAUTH,
        (Login.CERTIFICATE, Method.TRUST): _AT_ONCE,
        (Login.CERTIFICATE, Method.CERT): _AT_ONCE,
        (Login.CERTIFICATE, Method.PEER): _AT_ONCE,
        (Login.CERTIFICATE, Method.SCRAM_SHA_256): _AT_ONCE,
        (Login.CERTIFICATE, Method.PASSWORD): _AT_ONCE,
        **{
            (Login.PASSFILE, method): _OWN_PASSWORD
            for method in (Method.TRUST, Method.CERT, Method.PEER, Method.SCRAM_SHA_256, Method.PASSWORD)
        },
    }
)
"""For each login and method: which message may follow which (None: the first). What is missing may ask
nothing."""

_OPENINGS = MappingProxyType(
    {
        Challenge.NONE: _OK,
        Challenge.CLEARTEXT: _CLEARTEXT,
        Challenge.MD5: _MD5,
        Challenge.GSS: _GSS,
        Challenge.SCRAM: _SASL,
        Challenge.OTHER_SASL: _SASL,
    }
)
"""The message with which a backend begins to ask."""

_SCRAM = frozenset({"SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"})
_OAUTHBEARER = "OAUTHBEARER"


def judge(
    login: Login,
    method: Method,
    code: int,
    mechanisms: Sequence[str],
    client: ClientLeg,
    *,
    previous: int | None = None,
) -> Verdict:
    """Judge an Authentication message of the backend.

    Args:
        login: how the backend is satisfied.
        method: the method of the deciding line of pg_hba.conf.
        code: the code of the message.
        mechanisms: what AuthenticationSASL lists; empty for others.
        client: who could read the client's answer.
        previous: the code of the message before it, None for the first.
    """
    order = ORDERS.get((login, method), MappingProxyType({}))
    name = _NAMES.get(code, "an unknown Authentication message")
    if code not in order.get(previous, frozenset()):
        when = "first" if previous is None else f"after {previous}"
        return Verdict(
            Action.REFUSE, f"the backend sent {name} ({code}) {when}: not with {method}, login {login}"
        )
    if code == _OK:
        return Verdict(Action.FINISH)
    if login is Login.PASSFILE:
        return _judge_own(code, mechanisms)
    if code == _CLEARTEXT and client is ClientLeg.CLEAR_REMOTE:
        return Verdict(
            Action.REFUSE, "the backend asked for a password in clear, and the client's leg is clear"
        )
    if code == _SASL:
        return _judge_mechanisms(method, mechanisms, client)
    return Verdict(Action.RELAY)


def allows(login: Login, method: Method, challenge: Challenge) -> bool:
    """Whether a backend may ask a client in this way.

    Args:
        login: how the backend is satisfied.
        method: the method of the line of pg_hba.conf.
        challenge: how it asked; `NONE` where it let the client in unasked.
    """
    first = ORDERS.get((login, method), MappingProxyType({})).get(None, frozenset())
    if _OPENINGS[challenge] not in first:
        return False
    if method is Method.OAUTH:
        return challenge is Challenge.OTHER_SASL
    return challenge is not Challenge.OTHER_SASL or method not in {
        Method.SCRAM_SHA_256,
        Method.PASSWORD,
        Method.MD5,
    }


def _judge_own(code: int, mechanisms: Sequence[str]) -> Verdict:
    """A request that the client does not see, whatever its leg is."""
    if code == _SASL and not _SCRAM.issuperset(mechanisms):
        shown = ", ".join(printable(mechanism) for mechanism in mechanisms)
        return Verdict(Action.REFUSE, f"the backend offered {shown}, and the proxy's password is for SCRAM")
    return Verdict(Action.RELAY)


def _judge_mechanisms(method: Method, mechanisms: Sequence[str], client: ClientLeg) -> Verdict:
    shown = ", ".join(printable(mechanism) for mechanism in mechanisms) or "none"
    if not mechanisms:
        return Verdict(Action.REFUSE, "the backend offered no SASL mechanism")
    if method is Method.OAUTH:
        if tuple(mechanisms) != (_OAUTHBEARER,):
            return Verdict(Action.REFUSE, f"the backend offered {shown}, the line demands {_OAUTHBEARER}")
        if client is not ClientLeg.SECURE:
            return Verdict(Action.REFUSE, "the backend asked for a token, and the client's leg is clear")
    elif not _SCRAM.issuperset(mechanisms):
        if method in {Method.SCRAM_SHA_256, Method.PASSWORD, Method.MD5}:
            return Verdict(Action.REFUSE, f"the backend offered {shown}, the line demands SCRAM-SHA-256")
        if client is ClientLeg.CLEAR_REMOTE:
            return Verdict(
                Action.REFUSE,
                f"the backend offered {shown}, and over the client's clear leg only SCRAM-SHA-256 is safe",
            )
    return Verdict(Action.RELAY)
