"""Which mechanism is offered and chosen, and what a SCRAM message says of channel binding.

The only type of channel binding is `tls-server-end-point`: the hash of the server's leaf certificate as it
was shown in this very handshake, after a reload too. Where a leg has no such hash (it is in clear, or its
leaf is signed by Ed25519), `end_point` is None throughout, and the leg binds nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from pgtlsproxy.errors import BackendMisbehaved
from pgtlsproxy.identity import printable
from pgtlsproxy.protocol.backend import SCRAM, SCRAM_PLUS, BindingFlag
from pgtlsproxy.protocol.scram.keys import encode_base64

BINDING_TYPE: Final = b"tls-server-end-point"

NONCE_OCTETS: Final = 18
"""Random octets of a nonce before base64; SCRAM_RAW_NONCE_LEN in common/scram-common.h."""


def new_nonce() -> bytes:
    """One side's part of a nonce, as PostgreSQL and libpq make it."""
    return encode_base64(secrets.token_bytes(NONCE_OCTETS))


def offered(end_point: bytes | None) -> tuple[str, ...]:
    """What a server offers, the best first (scram_get_mechanisms)."""
    return (SCRAM,) if end_point is None else (SCRAM_PLUS, SCRAM)


@dataclass(frozen=True, slots=True)
class Binding:
    """What one side holds of channel binding in one exchange.

    Args:
        flag: the gs2 flag.
        end_point: the hash that it binds to; empty unless `flag` is USED.
    """

    flag: BindingFlag
    end_point: bytes = field(default=b"", repr=False)

    @property
    def mechanism(self) -> str:
        """The mechanism that goes with it."""
        return SCRAM_PLUS if self.flag is BindingFlag.USED else SCRAM

    @property
    def header(self) -> bytes:
        """The gs2 header, with which a client-first-message begins."""
        name = b"=" + BINDING_TYPE if self.flag is BindingFlag.USED else b""
        return self.flag.value.encode() + name + b",,"

    @property
    def attribute(self) -> bytes:
        """The value of `c=` in a client-final-message: `biws`, `eSws`, or header and hash."""
        return encode_base64(self.header + self.end_point)


def choose(mechanisms: Collection[str], end_point: bytes | None) -> Binding:
    """What libpq chooses of a server's list with its `channel_binding=prefer` (pg_SASL_init, fe-auth.c).

    `y`, where the list has no PLUS and could have one, makes a server notice that somebody took it out.

    Args:
        mechanisms: the list of AuthenticationSASL.
        end_point: of the server's leaf; None also where binding is not wanted.

    Raises:
        BackendMisbehaved: nothing of the list can be used.
    """
    if SCRAM_PLUS in mechanisms and end_point is not None:
        return Binding(BindingFlag.USED, end_point)
    if SCRAM not in mechanisms:
        raise BackendMisbehaved(
            "none of the backend's SASL mechanisms can be used: "
            f"{printable(', '.join(mechanisms))}; expected {SCRAM}"
        )
    is_missed = end_point is not None
    return Binding(BindingFlag.NOT_OFFERED if is_missed else BindingFlag.NOT_SUPPORTED)
