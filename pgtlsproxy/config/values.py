"""What a setting's text means: times, lists, addresses and hosts.

Pure functions. Each raises BadValue with what was found and what was expected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network
from typing import Final

from pgtlsproxy.identity import printable

Network = IPv4Network | IPv6Network

DEFAULT_PORT: Final = 5432
MAX_PORT: Final = 65535

MAX_UNIX_PATH_OCTETS: Final = 107
"""`sun_path` of Linux's `struct sockaddr_un`, less its NUL."""

MAX_NAME_OCTETS: Final = 63
"""PostgreSQL's NAMEDATALEN - 1: no role and no database has a longer name."""

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
_TIME: Final = re.compile(r"([0-9]{1,10}(?:\.[0-9]{1,10})?) *(ms|s|min|h|d|)")
_SOCKET_FILE: Final = re.compile(r"(?P<folder>/.*?)/*\.s\.PGSQL\.(?P<port>[0-9]{1,5})")
_HOST_PORT: Final = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]{1,5})")
MAX_HOST_NAME_OCTETS: Final = 253
MAX_LABEL_OCTETS: Final = 63
"""How long a name of the DNS and what stands between two of its dots may be (RFC 1035, section 2.3.4)."""

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

_WELL_KNOWN_HOSTS: Final = {"localhost": ("127.0.0.1", "::1"), "*": ("0.0.0.0", "::")}  # noqa: S104 - what `*` says


class BadValue(ValueError):
    """A value that means nothing to its setting. Its text is a whole message for the administrator."""


@dataclass(frozen=True, slots=True)
class TCPAddress:
    """Where to listen on TCP.

    Args:
        hosts: numeric addresses; two, one a family, for `localhost` and `*`.
        port: 0 lets the system choose.
    """

    hosts: tuple[str, ...]
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether nobody beyond this host can connect."""
        return all(ip_address(host).is_loopback for host in self.hosts)

    def __str__(self) -> str:
        names = (name for name, hosts in _WELL_KNOWN_HOSTS.items() if hosts == self.hosts)
        host = next(names, self.hosts[0])
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """Where to listen on a Unix socket.

    Args:
        path: the socket's file, `<folder>/.s.PGSQL.<port>`, absolute.
    """

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class Host:
    """One host of a backend's list (libpq's `host`, `hostaddr` and `port` at one index).

    Args:
        host: a name, a numeric address, or the folder of a Unix socket; empty where only hostaddr
            is given.
        hostaddr: a numeric address to dial instead of looking `host` up.
        port: TCP port, or the number in the Unix socket's name.
    """

    host: str
    hostaddr: str | None
    port: int

    @property
    def is_unix(self) -> bool:
        """Whether it is reached through a Unix socket."""
        return self.host.startswith("/")


def found(value: object) -> str:
    """A value of the configuration, as a message shows it."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "on (without quotes, a switch)" if value else "off (without quotes, a switch)"
        case int() | float():
            return f"the number {value}"
        case str():
            return f'"{printable(value, 100)}"'
        case list() | tuple():
            return "a list"
        case _:
            return "a mapping"


def parse_time(value: object) -> float:
    """A time in postgresql.conf's units (`ms s min h d`); without a unit, seconds.

    (PostgreSQL manual, 20.1.1 Parameter Names and Values)

    Returns:
        Seconds.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    if isinstance(value, str) and (match := _TIME.fullmatch(value.strip())) is not None:
        return float(match[1]) * _SECONDS[match[2]]
    raise BadValue(f"{found(value)} is no time: write a number with ms, s, min, h or d behind it, as in 10s")


def parse_user_timeout(value: object) -> float:
    """The same for tcp_user_timeout, of which PostgreSQL and libpq count bare milliseconds.

    Returns:
        Seconds.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        raise BadValue(
            f"{found(value)} has no unit: PostgreSQL counts milliseconds here, and seconds are counted "
            "elsewhere in this file; write the unit, as in 30s or 30000ms"
        )
    return parse_time(value)


def parse_list(value: object) -> tuple[object, ...]:
    """A YAML list, or libpq's comma list in one text."""
    if isinstance(value, str):
        return tuple(item.strip() for item in value.split(","))
    if isinstance(value, list | tuple):
        return tuple(value)
    raise BadValue(f"found {found(value)}, expected a list, as in [a, b], or one text with commas")


def parse_filled_list(value: object) -> tuple[object, ...]:
    """The same, with something in it."""
    items = parse_list(value)
    if not items:
        raise BadValue("the list is empty: leave the key out, or put something into it")
    return items


def parse_ports(value: object) -> tuple[int, ...]:
    """The `port` of libpq: one number, or a list of them; an empty element of a comma list is 5432."""
    if isinstance(value, str) and "," in value:
        return tuple(
            _port(_number(item)) if item else DEFAULT_PORT for item in map(str.strip, value.split(","))
        )
    return tuple(_port(item) for item in (value if isinstance(value, list | tuple) else [value]))


def _number(text: str) -> int | str:
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) else text


def _port(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_PORT:
        return value
    raise BadValue(f"{found(value)} is no port: write a number from 1 to {MAX_PORT}, without quotes")


def parse_listen_address(value: object) -> TCPAddress | UnixAddress:
    """`host:port`, `[v6]:port`, `*:port`, `localhost:port`, `unix:/folder[:port]`, `/folder/.s.PGSQL.port`.

    Host names other than localhost are refused: what they stand for may change behind one's back.
    """
    if not isinstance(value, str):
        raise BadValue(f'found {found(value)}, expected an address in quotes, as in "127.0.0.1:5432"')
    if value.startswith("unix:"):
        return _unix_address(value.removeprefix("unix:"), value)
    if value.startswith("/"):
        if _SOCKET_FILE.fullmatch(value) is None:
            raise BadValue(f'{found(value)} is no socket file: write "unix:{value}" or {value}/.s.PGSQL.5432')
        return _unix_address(value, value)
    return _tcp_address(value)


def _unix_address(text: str, value: str) -> UnixAddress:
    if not text.startswith("/"):
        raise BadValue(
            f'{found(value)}: the folder of a Unix socket begins with /, as in "unix:/run/pgtlsproxy"'
        )
    if (match := _SOCKET_FILE.fullmatch(text)) is not None:
        folder, port_text = match["folder"], match["port"]
    else:
        folder, colon, port_text = text.rpartition(":")
        if not colon:
            folder, port_text = text, str(DEFAULT_PORT)
    if not (port_text.isdecimal() and port_text.isascii() and 0 < (port := int(port_text)) <= MAX_PORT):
        raise BadValue(f"{found(value)}: a port from 1 to {MAX_PORT} belongs behind the colon")
    path = f"{folder.rstrip('/')}/.s.PGSQL.{port}"
    if (length := len(path.encode())) > MAX_UNIX_PATH_OCTETS:
        raise BadValue(
            f"{found(path)} has {length} bytes, and a Unix socket's path at most {MAX_UNIX_PATH_OCTETS}: "
            "choose a shorter folder"
        )
    return UnixAddress(path)


def _tcp_address(value: str) -> TCPAddress:
    match = _HOST_PORT.fullmatch(value)
    if match is None:
        raise BadValue(f"{found(value)} is no address to listen on: {_listen_hint(value)}")
    if (port := int(match["port"])) > MAX_PORT:
        raise BadValue(f"{found(value)}: a port is at most {MAX_PORT}")
    host = match["v6"] if match["host"] is None else match["host"]
    if match["host"] in _WELL_KNOWN_HOSTS:
        return TCPAddress(_WELL_KNOWN_HOSTS[host], port)
    try:
        ip = ip_address(host)
    except ValueError:
        raise BadValue(
            f"{found(value)}: {found(host)} is no numeric address; write one, or localhost, or * for all"
        ) from None
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        raise BadValue(f"{found(value)}: write the IPv4 address, {ip.ipv4_mapped}:{port}")
    return TCPAddress((str(ip),), port)


def _listen_hint(value: str) -> str:
    if value.count(":") > 1 and not value.startswith("["):
        return 'an IPv6 address stands in brackets, with the port behind them, as in "[::1]:5432"'
    if is_ip(value.strip("[]")):
        return f'the port is missing, as in "{value}:5432"'
    return 'write "host:port", "[v6]:port", "*:port" or "unix:/folder"'


def is_ip(text: str) -> bool:
    """Whether a text is a numeric address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def parse_host(value: object) -> str:
    """One element of a backend's `host`: a name, a numeric address, or a Unix socket's folder."""
    if not isinstance(value, str):
        raise BadValue(f"found {found(value)}, expected a host name in quotes")
    if not value or is_ip(value):
        return value
    if value.startswith("/"):
        return value.rstrip("/") or "/"
    if value.startswith("@"):
        raise BadValue(f"{found(value)}: abstract Unix sockets have no owner that could vouch for them")
    if value.startswith("["):
        raise BadValue(f"{found(value)}: write the IPv6 address without brackets; the port goes into port")
    if ":" in value:
        raise BadValue(f"{found(value)}: the port of a backend goes into port, as in libpq")
    if _HOST_NAME.fullmatch(value) is None:
        raise BadValue(f"{found(value)} is no host name; names in other scripts are written as xn--...")
    name = value.removesuffix(".")
    if len(name) > MAX_HOST_NAME_OCTETS:
        raise BadValue(f"{found(value)} is no host name: it is longer than {MAX_HOST_NAME_OCTETS} characters")
    if not all(0 < len(label) <= MAX_LABEL_OCTETS for label in name.split(".")):
        raise BadValue(
            f"{found(value)} is no host name: between its dots stand 1 to {MAX_LABEL_OCTETS} characters"
        )
    return value


def parse_host_address(value: object) -> str | None:
    """One element of a backend's `hostaddr`; an empty one leaves the name to be looked up."""
    if value == "":
        return None
    if isinstance(value, str) and is_ip(value):
        return value
    raise BadValue(f"{found(value)} is no numeric address; names go into host")


def parse_network(value: object) -> Network:
    """A network in CIDR notation."""
    text = value if isinstance(value, str) else ""
    if is_ip(text):
        raise BadValue(
            f"{found(text)} has no prefix length: for this one address write "
            f"{text}/{128 if ':' in text else 32}"
        )
    try:
        network = ip_network(text, strict=False)
        exact = ip_interface(text).ip == network.network_address and text.rpartition("/")[2].isdecimal()
    except ValueError:
        raise BadValue(f"{found(value)} is no network: write CIDR notation, as in 10.0.0.0/8") from None
    if not exact:
        raise BadValue(f"{found(value)}: if {network} is meant, write that")
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise BadValue(
            f"{found(value)}: clients with IPv4 addresses are known by those: write an IPv4 network"
        )
    return network


def parse_role_name(value: object) -> str:
    """The name of a PostgreSQL role."""
    if not isinstance(value, str):
        raise BadValue(f"found {found(value)}, expected the name of a role in quotes")
    if not 0 < len(value.encode()) <= MAX_NAME_OCTETS:
        raise BadValue(f"{found(value)} is no role: names have 1 to {MAX_NAME_OCTETS} bytes")
    return value


def parse_database_name(value: object) -> str:
    """The name of a PostgreSQL database."""
    if not isinstance(value, str):
        raise BadValue(f"found {found(value)}, expected the name of a database in quotes")
    if not 0 < len(value.encode()) <= MAX_NAME_OCTETS or "\0" in value:
        raise BadValue(f"{found(value)} is no database: names have 1 to {MAX_NAME_OCTETS} bytes, and no NUL")
    return value


def parse_file_mode(value: object) -> int:
    """A file mode as a quoted octal text.

    Returns:
        Permission bits.
    """
    if isinstance(value, str) and re.fullmatch(r"0?[0-7]{3}", value):
        return int(value, 8)
    if isinstance(value, int):
        raise BadValue('found a number: quote the file mode, as in "0770", or YAML reads it in its own way')
    raise BadValue(f'{found(value)} is no file mode: write three octal digits behind a 0, as in "0770"')
