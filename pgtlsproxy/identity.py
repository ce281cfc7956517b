"""What a peer is and what it proved: addresses, certificates, operating system users.

Names travel as `str`, decoded from the wire as UTF-8 with `surrogateescape`. That is a
bijection, so comparing them compares bytes, which is what PostgreSQL does.
"""

from __future__ import annotations

import enum
import hmac
import unicodedata
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address, IPv6Network

PRINTABLE_LIMIT = 512
"""Longest text from outside that is shown, in characters; the rest becomes `...`."""

IPAddress = IPv4Address | IPv6Address


def decode_name(raw: bytes) -> str:
    """Bytes from the wire, a file or a certificate as text that can be turned back into them."""
    return raw.decode("utf-8", "surrogateescape")


def encode_name(name: str) -> bytes:
    """The bytes of a name that came from `decode_name`."""
    return name.encode("utf-8", "surrogateescape")


def printable(text: str | bytes, limit: int = PRINTABLE_LIMIT) -> str:
    r"""Text from outside, safe to show in a terminal or a log.

    Control characters (C0, C1, DEL), bytes that are not UTF-8, separators that break lines and
    invisible formatting (bidirectional overrides among them) become \xNN or \uNNNN.

    Args:
        text: the text, or its bytes.
        limit: longest result in characters, not counting the closing `...`.
    """
    if isinstance(text, bytes):
        text = decode_name(text[: limit * 4])
    if text.isascii() and text.isprintable() and len(text) <= limit:
        return text  # nearly all there is, at a hundredth of the cost
    shown = "".join(_shown(character) for character in text[: limit + 1])
    return shown if len(shown) <= limit else shown[:limit] + "..."


def _shown(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if character == " " or unicodedata.category(character)[0] not in "CZ":
        return character
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class Secret:
    """Bytes that no log, traceback or `repr` shows. `reveal()` is the only way out."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """The bytes. Keep them in one function's frame."""
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    __hash__ = object.__hash__  # Cancels tells its slots apart by it

    def __repr__(self) -> str:
        return "Secret(...)"

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class ClientAddress:
    """Where a client comes from.

    Args:
        ip: its address, IPv4-mapped IPv6 already turned into IPv4;
            None at a Unix socket.
        port: its port; None at a Unix socket.
        is_local: at a Unix socket, or both ends are loopback, judged by getsockname.
    """

    ip: IPAddress | None
    port: int | None
    is_local: bool

    @property
    def is_unix(self) -> bool:
        """Whether the client came through a Unix socket."""
        return self.ip is None

    @property
    def source(self) -> str:
        """Who is counted as one: an IPv4 address, an IPv6 /64, or everybody at the Unix sockets."""
        if isinstance(self.ip, IPv6Address):
            return str(IPv6Network((self.ip, 64), strict=False))
        return str(self)

    def __str__(self) -> str:
        return "[local]" if self.ip is None else str(self.ip)


@dataclass(frozen=True, slots=True)
class OSUser:
    """The operating system's word on who is at the other end of a Unix socket (SO_PEERCRED).

    Args:
        uid, gid, pid: as the kernel says.
        name: the user's name; None where the uid has none, as in most containers.
        is_known: False for the kernel's overflow uid, which stands for every user that this user
            namespace does not know, and so for nobody.
    """

    uid: int
    gid: int
    pid: int
    name: str | None
    is_known: bool = True


@dataclass(frozen=True, slots=True)
class Certificate:
    """A verified certificate, reduced to what policy and logs ask of it.

    Args:
        common_names: every commonName of the subject in the order of the encoding, raw bytes
            through `decode_name`.
        dn: the subject as PostgreSQL prints it (RFC 2253 with its escapes; ASCII only).
        issuer_dn: the issuer in the same form.
        serial: the serial number.
        sha256: fingerprint of the DER, lower-case hex.
        not_before, not_after: validity, aware datetimes in UTC.
        subject_alt_names: `DNS:...`, `URI:...`, `email:...`, `IP:...`, printable and capped.
        dns_names, uris, emails: the subjectAltNames of these kinds, whole, raw bytes through
            `decode_name`.
        unnamed_types: attribute types of subject and issuer that OpenSSL, and so PostgreSQL, has no name
            for, in dotted decimal.
        issuer_key: who issued it in the chain that was verified: the SHA-256 of that certificate's
            public key, hex; None where it was not looked at.
    """

    common_names: tuple[str, ...]
    dn: str
    issuer_dn: str
    serial: int
    sha256: str
    not_before: datetime
    not_after: datetime
    subject_alt_names: tuple[str, ...] = field(default=())
    dns_names: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()
    emails: tuple[str, ...] = ()
    unnamed_types: tuple[str, ...] = ()
    issuer_key: str | None = None


class ProofKind(enum.StrEnum):
    """What proved that a client is the user it names. The one rule: nobody is let in without one."""

    CERTIFICATE = "cert"
    PEER = "peer"
    BACKEND_CHALLENGE = "backend"
    SCRAM = "scram-sha-256"
    PASSWORD = "password"  # noqa: S105 - the name of a method
    REQUIRE_AUTH_NONE = "none"
    LITERAL_LOCAL_USER = "trust"


class Challenge(enum.Enum):
    """What a backend asked the client for."""

    NONE = enum.auto()
    CLEARTEXT = enum.auto()
    MD5 = enum.auto()
    GSS = enum.auto()
    SCRAM = enum.auto()
    OTHER_SASL = enum.auto()


@dataclass(frozen=True, slots=True)
class Proof:
    """That a session's client is its user. Only `proxy.prove` and `proxy.login` make one.

    Args:
        kind: what was checked.
        user: the user of the StartupMessage.
        identity: what was proved, as PostgreSQL's `connection authenticated` line has it: a DN,
            an operating system user, a role.
        challenge: what the backend asked the client for, which the client answered; `NONE` where it let the
            session in unasked.
    """

    kind: ProofKind
    user: str
    identity: str
    challenge: Challenge = Challenge.NONE
