"""What all parts of the configuration have in common: the base model and its kinds of values."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationInfo

from pgtlsproxy.config.values import (
    BadValue,
    found,
    parse_filled_list,
    parse_list,
    parse_time,
    parse_user_timeout,
)


@dataclass(frozen=True, slots=True)
class Reading:
    """What validation knows of the file that it reads.

    Args:
        folder: where the file lies, absolute; relative paths start there.
    """

    folder: str


class Model(BaseModel):
    """A frozen part of the configuration. Unknown keys and coercions are mistakes."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    not_in_this_version: ClassVar[frozenset[str]] = frozenset()
    """Keys whose names are settled and whose work has not landed."""


PROTOCOL_VERSIONS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
"""postgresql.conf's and libpq's names, in ascending order."""


MAX_KEEPALIVE_SECONDS: Final = 32_767
MAX_KEEPALIVE_COUNT: Final = 127
"""What Linux takes (MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL and MAX_TCP_KEEPCNT, include/net/tcp.h)."""

MAX_USER_TIMEOUT_SECONDS: Final = 86_400.0


def _protocol_version(value: object) -> str:
    for name in PROTOCOL_VERSIONS:
        if isinstance(value, str) and value.lower() == name.lower():
            return name
    raise BadValue(f"found {found(value)}, expected one of {', '.join(PROTOCOL_VERSIONS)}")


def _text(value: object) -> object:
    if isinstance(value, str) and not value.strip():
        raise BadValue("is empty: leave the key out, or give it a value")
    return value


def absolute(path: str, info: ValidationInfo) -> str:
    """A path as the process can open it from anywhere; `..` is left to the kernel, which knows links."""
    if not isinstance(info.context, Reading):
        raise TypeError("settings are read by load_settings alone, which knows where relative paths start")
    return os.path.join(info.context.folder, path)  # noqa: PTH118 - Path() / drops a leading ./


def _switch(value: object) -> object:
    if isinstance(value, int) and value in {0, 1}:
        return bool(value)
    return value


def in_range(lowest: float, highest: float) -> Callable[[float], float]:
    """A check that a time lies within two ends, in seconds."""

    def check(seconds: float) -> float:
        if lowest <= seconds <= highest:
            return seconds
        raise BadValue(f"{seconds:g} s is out of range: from {lowest:g} s to {highest:g} s")

    return check


def _in_whole_seconds(seconds: float) -> float:
    if seconds == int(seconds) and seconds <= MAX_KEEPALIVE_SECONDS:
        return seconds
    raise BadValue(
        f"{seconds:g} s cannot be had: the kernel counts whole seconds, from 1 s to {MAX_KEEPALIVE_SECONDS} "
        "s; 0 stands for the system's own"
    )


def whole_number(lowest: int, highest: int) -> Callable[[object], int]:
    """A check that a value is a whole number within two ends."""

    def check(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest:
            return value
        raise BadValue(f"found {found(value)}, expected a whole number from {lowest} to {highest}")

    return check


def one_of(*allowed: str, later: tuple[str, ...] = ()) -> Callable[[object], object]:
    """A check that a value is one of a closed set, or a settled one that is still to come."""

    def check(value: object) -> object:
        if value in later:
            raise BadValue(f"{found(value)} is not in this version; use {' or '.join(allowed)}")
        if isinstance(value, str) and value in allowed:
            return value
        raise BadValue(f"found {found(value)}, expected one of {', '.join(allowed)}")

    return check


Text = Annotated[str, BeforeValidator(_text)]
"""A text that says something."""

FilePath = Annotated[Text, AfterValidator(absolute)]
"""A path, absolute once it is loaded."""

Seconds = Annotated[float, BeforeValidator(parse_time)]
"""A time in postgresql.conf's units, in seconds once it is loaded."""

KeepAliveSeconds = Annotated[Seconds, AfterValidator(_in_whole_seconds)]
"""A time between two looks for a silent peer; 0 for the system's own."""

KeepAliveCount = Annotated[int, BeforeValidator(whole_number(0, MAX_KEEPALIVE_COUNT))]
"""How many such looks; 0 for the system's own."""

UserTimeout = Annotated[
    float, BeforeValidator(parse_user_timeout), AfterValidator(in_range(0, MAX_USER_TIMEOUT_SECONDS))
]
"""A time that sent data may be unacknowledged; 0 for the system's own."""

ProtocolVersion = Annotated[
    Literal["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"], BeforeValidator(_protocol_version)
]
"""A TLS version in any case, as postgresql.conf spells it once it is loaded."""

LibpqSwitch = Annotated[bool, BeforeValidator(_switch)]
"""on or off; libpq's 1 or 0 too."""

CommaList = BeforeValidator(parse_list)
"""Takes a YAML list or one text with commas."""

FilledCommaList = BeforeValidator(parse_filled_list)
"""The same, with something in it."""
