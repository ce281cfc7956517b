"""What validation found, in the words of somebody who writes a configuration."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

from pydantic_core import ErrorDetails

from pgtlsproxy.config.backend import Backend, HostProbe
from pgtlsproxy.config.listener import AuthQuery, Database, Listener, RolesQuery
from pgtlsproxy.config.model import Model
from pgtlsproxy.config.settings import General, Log, Status
from pgtlsproxy.config.values import found
from pgtlsproxy.identity import printable

OLDER_NAMES: Final = {"ssl_ecdh_curve": "ssl_groups"}
"""postgresql.conf's names from before PostgreSQL 18, and today's."""

_PLACES: Final[Mapping[type[Model], str]] = {
    General: "the top level",
    Listener: "a listener",
    Backend: "a backend",
}

_NESTED: Final[Mapping[str, type[Model]]] = {
    "log": Log,
    "roles_query": RolesQuery,
    "auth_query": AuthQuery,
    "host_probe": HostProbe,
    "databases": Database,
    "status": Status,
}
"""Settings that have settings of their own."""

_REQUIRED: Final = {
    "listen": 'where clients connect, as in ["127.0.0.1:5432"]',
    "status.listen": 'where metrics are served, as in "127.0.0.1:9643"',
    "backend": "the name of one of the backends",
    "ssl": "on, or off for clear text alone",
    "hba_file": "without a pg_hba.conf nobody may come in",
    "user": "the role that asks",
    "login": "passthrough (the client proves itself at the backend), certificate, passfile (the proxy does)",
}


def explain(detail: ErrorDetails, model: type[Model]) -> str:
    """One of pydantic's findings as a sentence that no user of pydantic is needed to read.

    Args:
        detail: the finding.
        model: what was read; its `loc` starts there.
    """
    key, value = str(detail["loc"][-1]), detail["input"]
    match detail["type"]:
        case "value_error":
            return str(detail["ctx"]["error"])
        case "missing":
            path = ".".join(map(str, detail["loc"]))
            return f"is missing: {_REQUIRED.get(path) or _REQUIRED[key]}"
        case "extra_forbidden":
            return _unknown_key(key, _NESTED[str(detail["loc"][0])] if len(detail["loc"]) > 1 else model)
        case "bool_type":
            return f"found {found(value)}, expected on or off, without quotes"
        case "string_type":
            return f"found {found(value)}, expected a text; in quotes, if it looks like something else"
        case "dict_type":
            return f"found {found(value)}, expected databases with their backends (database: backend)"
        case "model_type":
            return f"found {found(value)}, expected settings (key: value)"
        case kind:
            raise NotImplementedError(f"no words for pydantic's {kind} at {key}")


def _unknown_key(key: str, model: type[Model]) -> str:
    if key in model.not_in_this_version:
        return "is not in this version: leave it out"
    for other, place in _PLACES.items():
        if other is not model and key in _keys(other):
            return f"is a setting of {place}, and does not belong here"
    return f"there is no such setting{suggestion(key, _keys(model))}"


def _keys(model: type[Model]) -> set[str]:
    keys = {*model.model_fields, *model.not_in_this_version}
    if model is General:
        keys |= {"listeners", "backends"}
    if model is Listener:
        keys |= OLDER_NAMES.keys()
    return keys


def suggestion(name: str, known: Iterable[str]) -> str:
    """A question about the nearest known name, to be put behind a sentence; empty where none is near."""
    nearest = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {printable(nearest[0])}?" if nearest else ""
