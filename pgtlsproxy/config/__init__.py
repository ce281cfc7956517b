from __future__ import annotations
import os
from typing import Any
from pydantic import ValidationError
from pgtlsproxy.config.backend import Backend
from pgtlsproxy.config.listener import Listener
from pgtlsproxy.config.model import Model, Reading, Seconds
from pgtlsproxy.config.values import Host, TCPAddress, UnixAddress
from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.strict_yaml import parse


class Log(Model):
    format: str | None = None
    level: str = "info"


class Settings(Model):
    listeners: dict[str, Listener]
    backends: dict[str, Backend]
    startup_timeout: Seconds = 10.0
    authentication_timeout: Seconds = 60.0
    max_connections: int = 1000
    cancel_rate: int = 10
    log: Log = Log()

    @property
    def warnings(self):
        return ()


def load_settings(path: str, content: bytes) -> Settings:
    d = parse(path, content)
    try:
        return Settings.model_validate(d.data, context=Reading(os.path.dirname(os.path.abspath(path)), d))
    except ValidationError as e:
        raise ConfigError([Mistake(path, str(e))]) from None
