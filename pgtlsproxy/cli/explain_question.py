"""What `pgtlsproxy explain` is asked: a client, by options or by a line of the log."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Any, Final

import click

from pgtlsproxy.cli.explain_certificate import Said, described, require_forms
from pgtlsproxy.config import Listener, TCPAddress
from pgtlsproxy.identity import (
    PRINTABLE_LIMIT,
    Certificate,
    ClientAddress,
    OSUser,
    encode_name,
    printable,
)
from pgtlsproxy.policy.access import DecidedBy, Rules
from pgtlsproxy.policy.explanation import Open
from pgtlsproxy.policy.request import AccessRequest
from pgtlsproxy.policy.rule import Replication

LOCAL: Final = "local"
"""What --address says of a Unix socket; the log says LOGGED_LOCAL."""

LOGGED_LOCAL: Final = "[local]"

MAX_LOG_OCTETS: Final = 1 << 20
"""How much of a log is read; a line has some kilobytes."""

MAX_NAME_OCTETS: Final = 63
"""NAMEDATALEN - 1: a client that asks for more is refused before any policy is asked."""

OVERFLOW_UID: Final = 65534
"""What the kernel says of every user that a namespace does not know, unless it was told otherwise."""

REPLICATION: Final = {
    None: Replication.NONE,
    "true": Replication.PHYSICAL,
    "database": Replication.LOGICAL,
    "none": Replication.NONE,
    "physical": Replication.PHYSICAL,
    "logical": Replication.LOGICAL,
}
"""By the word of the option, as in a StartupMessage, or of the log."""

_ESCAPED: Final = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
"""What `printable` writes where it does not show what is there."""


class Unanswerable(Exception):
    """There is no answer; the text says why, and is printable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A client as it is described, its text as it was given.

    Args:
        user, database: the names that it asks for.
        address: an IP address, or LOCAL.
        replication: a word of the StartupMessage or of the log; None where it asks for none.
        os_user: who it is at a Unix socket, a name or `uid:1000`; None where that is not said.
        tls: whether it speaks TLS where the listener does.
        certificate: whether it has one; None where that is not said.
        said: what is in it.
        refusal: why its handshake failed; None where it did not.
    """

    user: str
    database: str
    address: str
    replication: str | None = None
    os_user: str | None = None
    tls: bool = True
    certificate: bool | None = None
    said: Said = field(default_factory=Said)
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What the policy is asked.

    Args:
        request: the client.
        left_open: what is not known of it.
    """

    request: AccessRequest
    left_open: frozenset[Open]


def question(client: Client, rules: Rules, listener: Listener, shown: Certificate | None = None) -> Question:
    """What the policy of a listener is asked about a client.

    Args:
        client: the client.
        rules: the listener's policy, with the CAs that are trusted.
        listener: its settings.
        shown: the client's certificate, where it is there to be read.

    Raises:
        Unanswerable: nobody can come to the listener that way.
    """
    address = client_address(client.address)
    _check_reach(address, rules.listener, listener)
    tls = client.tls and listener.ssl and not address.is_unix
    certificate, left_open = None, frozenset[Open]()
    if tls and listener.ssl_ca_file is not None:  # otherwise no certificate is asked for
        if shown is not None:
            certificate = shown
        elif client.certificate is not False and client.said.is_nothing:
            left_open = frozenset({Open.CERTIFICATE})
        elif client.certificate is not False:
            certificate, left_open = described(client.said, rules.issuers)
    if address.is_unix and client.os_user is None:
        left_open |= {Open.OS_USER}
    return Question(
        AccessRequest(
            user=client.user,
            database=client.database,
            replication=REPLICATION[client.replication],
            address=address,
            tls=tls,
            certificate=certificate,
            os_user=None if client.os_user is None else _os_user(client.os_user),
        ),
        left_open,
    )


def client_address(text: str) -> ClientAddress:
    """Where a client comes from, as the proxy takes it.

    Raises:
        ValueError: it is neither an IP address nor LOCAL.
    """
    if text == LOCAL:
        return ClientAddress(None, None, is_local=True)
    ip = ip_address(text.partition("%")[0])
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ClientAddress(ip, None, is_local=ip.is_loopback)


def _name_problem(name: str) -> str | None:
    """Why no client can ask for a user or database of this name; None where one can."""
    if "\0" in name:
        return "has a NUL byte, which ends a name in a StartupMessage"
    if (octets := len(encode_name(name))) > MAX_NAME_OCTETS:
        return f"has {octets} bytes: over {MAX_NAME_OCTETS} the proxy refuses, and PostgreSQL would cut it"
    return None


def _check_reach(address: ClientAddress, name: str, listener: Listener) -> None:
    if address.ip is None:
        if not listener.has_unix:
            raise Unanswerable(f"listener {name} has no Unix socket: nobody comes to it that way")
        return
    if listener.proxy_protocol_from:
        return  # a load balancer may bring clients from everywhere
    hosts = [host for each in listener.listen if isinstance(each, TCPAddress) for host in each.hosts]
    if all(ip_address(host).version != address.ip.version for host in hosts):
        raise Unanswerable(
            f"listener {name} listens on no IPv{address.ip.version} address: nobody comes to it from "
            f"{address}"
        )


def _os_user(text: str) -> OSUser:
    number = text.removeprefix("uid:")
    if number != text and number.isascii() and number.isdecimal():
        uid = int(number)
        return OSUser(uid, -1, -1, None, is_known=uid != OVERFLOW_UID)
    return OSUser(-1, -1, -1, text)


def described_client(
    *,
    user: str | None,
    database: str | None,
    address: str | None,
    replication: str | None,
    os_user: str | None,
    certificate: bool,
    cn: str | None,
    dn: str | None,
    san: tuple[str, ...],
    issuer: str | None,
    no_certificate: bool,
    no_tls: bool,
) -> Client:
    """The client that options describe.

    Args:
        user: as it was given, as the next three.
        database: by default the user.
        address: an IP address, or LOCAL.
        replication: a word of the StartupMessage.
        os_user: a name, or `uid:1000`.
        cn: a name in its certificate.
        dn: likewise.
        san: its subjectAltNames, each behind its label.
        issuer: who issued it.
        certificate: whether its certificate is there to be read.
        no_certificate: whether it has none.
        no_tls: whether it comes in clear.

    Raises:
        click.UsageError: one is missing, cannot be, or does not go with another.
    """
    user, address, is_unix = _who_and_whence(user, database, address)
    require_forms(dn, issuer, san)
    given = _given_of_certificate(
        {
            "--certificate": certificate,
            "--cn": cn is not None,
            "--dn": dn is not None,
            "--no-certificate": no_certificate,
            "--no-tls": no_tls,
        },
        {"--san": bool(san), "--issuer": issuer is not None},
    )
    if is_unix and given and not no_tls:
        raise click.UsageError(f"{given[0]} and --address {LOCAL}: there is no TLS at a Unix socket")
    if os_user is not None and not is_unix:
        raise click.UsageError(f"--os-user is known at a Unix socket only: --address {LOCAL}")
    return Client(
        user=user,
        database=database or user,
        address=address,
        replication=replication,
        os_user=os_user,
        tls=not no_tls,
        certificate=False if no_certificate else None,
        said=Said(cn=cn, dn=dn, san=san or None, issuer=issuer),
    )


def _who_and_whence(user: str | None, database: str | None, address: str | None) -> tuple[str, str, bool]:
    """User and address, which have to be there, and whether that is a Unix socket.

    Raises:
        click.UsageError: one is missing, or can be none.
    """
    if not user or not address:
        missing = "--user" if not user else "--address"
        raise click.UsageError(f"{missing} is missing: say who comes and from where, or give --log")
    for option, name in (("--user", user), ("--database", database or "")):
        if (problem := _name_problem(name)) is not None:
            raise click.UsageError(f'{option} "{printable(name)}" {problem}')
    try:
        is_unix = client_address(address).is_unix
    except ValueError:
        text = f'--address takes an IP address or {LOCAL}, not "{printable(address)}"'
        raise click.UsageError(text) from None
    return user, address, is_unix


def _given_of_certificate(alternatives: Mapping[str, bool], additions: Mapping[str, bool]) -> list[str]:
    """The options that say something of a certificate.

    Args:
        alternatives: those of which one may be there, and whether it is.
        additions: those that go with names.

    Raises:
        click.UsageError: some do not go together.
    """
    chosen = [option for option, is_given in alternatives.items() if is_given]
    added = [option for option, is_given in additions.items() if is_given]
    contrary = added if set(chosen) - {"--cn", "--dn"} else []
    if len(chosen) + len(contrary) > 1:
        raise click.UsageError(f"{' and '.join(chosen + contrary)} do not go together: keep one")
    return chosen + added


def logged_client(log: bytes) -> tuple[str, Client]:
    """The listener and the client of the one event `session_decided` in a log.

    Raises:
        Unanswerable: there is none, or several, or it does not say, or not exactly, who the client was.
    """
    found = [event for event in map(_event, log.splitlines()) if event is not None]
    if len(found) != 1:
        count = f"there are {len(found)} events" if found else "there is no event"
        raise Unanswerable(
            f"{count} session_decided in the log, as JSON: give the line of one session, as grep finds it by "
            "its id"
        )
    listener = _text(found[0], "listener")
    if listener is None:
        raise Unanswerable("the event names no listener")
    return listener, _client(found[0])


def _event(line: bytes) -> Mapping[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_one = isinstance(event, dict) and event.get("event") == "session_decided"
    return event if is_one else None


def _client(event: Mapping[str, Any]) -> Client:
    if event.get("cert_verified") is False:
        problem = _text(event, "tls_error") or "it did not verify"
        return Client(user="", database="", address=LOCAL, refusal=printable(problem))
    user = _exact(event, "user")
    if user is None:
        reason = _text(event, "reason") or "the event names no user"
        raise Unanswerable(f"the session ended before a policy was asked about it: {printable(reason)}")
    if event.get("decided_by") == DecidedBy.PROXY_PROTOCOL_FROM:
        raise Unanswerable("its PROXY header named no client, so no policy was asked about one")
    address = _text(event, "client_addr") or ""
    issuer_key = _text(event, "cert_issuer_key")
    uid = event.get("os_uid")
    return Client(
        user=user,
        database=_exact(event, "database") or "",
        address=LOCAL if address == LOGGED_LOCAL else _logged_address(address),
        replication=_replication(event),
        os_user=_exact(event, "os_user") or (f"uid:{uid}" if isinstance(uid, int) else None),
        tls=event.get("tls_version") is not None,
        certificate=event.get("cert_dn") is not None,
        said=Said(
            cn=_exact(event, "cert_cn"),
            dn=_exact(event, "cert_dn"),
            san=_alternative_names(event),
            issuer=None if issuer_key is None else _text(event, "cert_issuer"),  # a name alone is no CA
            issuer_key=issuer_key,
        ),
    )


def _alternative_names(event: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The subjectAltNames of an event; None where they are not certainly all there, as they are."""
    names = event.get("cert_san") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Unanswerable("cert_san of the event is no list of text")
    for name in names:
        # A list that is cut ends in `... 7 more`, and a long name in `...`.
        if name.startswith("...") or name.endswith("...") or _may_be_a_picture(name):
            return None
    return tuple(names)


def _logged_address(text: str) -> str:
    try:
        client_address(text)
    except ValueError:
        raise Unanswerable(f'client_addr of the event is "{printable(text)}", and no address') from None
    return text


def _replication(event: Mapping[str, Any]) -> str | None:
    word = _text(event, "replication")
    if word not in REPLICATION:
        raise Unanswerable(f'replication of the event is "{printable(str(word))}", which is no kind of it')
    return word


def _text(event: Mapping[str, Any], key: str) -> str | None:
    value = event.get(key)
    if value is not None and not isinstance(value, str):
        raise Unanswerable(f"{key} of the event is no text")
    return value


def _exact(event: Mapping[str, Any], key: str) -> str | None:
    """A name in the log that is certainly the client's own, and no picture of one that cannot be shown."""
    value = _text(event, key)
    if value is not None and _may_be_a_picture(value):
        raise Unanswerable(
            f'the log shows the {key} as "{printable(value)}", which may stand for characters that it cannot '
            "show: ask with options instead"
        )
    return value


def _may_be_a_picture(shown: str) -> bool:
    """Whether a text in the log may stand for characters that it cannot show."""
    return _ESCAPED.search(shown) is not None or len(shown) > PRINTABLE_LIMIT
