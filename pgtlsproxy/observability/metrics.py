"""What the proxy says of itself: as Prometheus reads it, and as one object for `pgtlsproxy status`.

No label has a text that a client chose: listeners and units have the names that the configuration gives
them, outcomes are a closed set.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from pgtlsproxy.observability.figures import Figures

_PREFIX: Final = "pgtlsproxy_"


class _Collector(Collector):
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        service = self._figures.service
        yield _gauge(
            "build_info", "The version that runs, as a label.", [((self._figures.version,), 1)], ("version",)
        )
        yield _gauge("start_time_seconds", "Unix time of the start.", [((), self._figures.started_at)])
        yield _gauge(
            "config_last_reload_successful",
            "Whether everything could be taken at the last reload.",
            [((), service.last.is_good)],
        )
        yield _gauge(
            "config_last_reload_success_timestamp_seconds",
            "Unix time of the last load at which everything could be taken.",
            [((), service.last.good_at)],
        )
        yield _gauge(
            "config_generation", "The number of the configuration in service.", [((), service.generation)]
        )
        yield _gauge(
            "reload_failed",
            "The units that keep their old content.",
            [((unit,), 1) for unit in service.last.failed],
            ("unit",),
        )
        yield _gauge(
            "certificate_not_after_seconds",
            "Unix time at which a certificate or revocation list runs out; the earliest of several.",
            [((each.owner, each.name), each.at) for each in service.last.not_after],
            ("owner", "name"),
        )
        yield _gauge("workers", "The workers that serve.", [((), service.workers)])
        yield _gauge("ready", "Whether /readyz says so.", [((), service.is_ready)])
        yield _gauge(
            "sessions_active",
            "Sessions that are let in and not over.",
            [((name,), count) for name, count in self._figures.active.items()],
            ("listener",),
        )
        ended = CounterMetricFamily(
            f"{_PREFIX}sessions",
            "Sessions that are over or were refused, by how they ended.",
            labels=("listener", "outcome"),
        )
        for listener, outcomes in self._figures.total.items():
            for outcome, count in outcomes.items():
                ended.add_metric((listener, outcome), count)
        yield ended


def _gauge(
    name: str, text: str, samples: Iterable[tuple[tuple[str, ...], float]], labels: tuple[str, ...] = ()
) -> Metric:
    family = GaugeMetricFamily(f"{_PREFIX}{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, float(value))
    return family


def exposition(figures: Figures, accept: str) -> tuple[bytes, str]:
    """What Prometheus reads, and its content type.

    Args:
        figures: what there is to say.
        accept: the request's Accept field, which may ask for OpenMetrics.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(figures))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def as_json(figures: Figures) -> bytes:
    """What `pgtlsproxy status` reads."""
    service = figures.service
    found = {
        "version": figures.version,
        "started_at": figures.started_at,
        "ready": service.is_ready,
        "stopping": service.is_stopping,
        "workers": service.workers,
        "generation": service.generation,
        "last_reload": {
            "successful": service.last.is_good,
            "success_at": service.last.good_at,
            "failed": list(service.last.failed),
        },
        "certificates": [
            {"owner": each.owner, "name": each.name, "not_after": each.at} for each in service.last.not_after
        ],
        "sessions": {
            name: {"active": active, "total": dict(figures.total[name])}
            for name, active in figures.active.items()
        },
    }
    return json.dumps(found).encode()
