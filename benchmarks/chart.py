"""The run as one picture. matplotlib is imported with this module and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

from benchmarks.measures import BESIDE_STREAMS
from benchmarks.readings import Readings

mpl.use("Agg")

from matplotlib import pyplot as plt

PANELS: Final = (
    ("simple", None, "cpu_us", "A transaction, simple: CPU µs"),
    ("prepared", None, "cpu_us", "A transaction, prepared: CPU µs"),
    ("clear", None, "cpu_us", "A transaction, client in clear: CPU µs"),
    ("copy-out", None, "cpu_s_per_gb", "COPY out: CPU s/GB"),
    ("copy-in", None, "cpu_s_per_gb", "COPY in: CPU s/GB"),
    ("sessions", None, "cpu_us", "A session: CPU µs"),
    ("memory", None, "rss_kb", "An idle session: RSS kB"),
    ("idle", None, "cpu_us", "A transaction beside idle sessions: CPU µs"),
    ("fairness", BESIDE_STREAMS, "p99_ms", "A ping beside 4 streams: p99 ms"),
)
"""Measure, case (all of them where None), metric, title. Less is better in all."""

COLOURS: Final = {
    "pgtlsproxy": "#1b6ac9",
    "pgtlsproxy (direct TLS)": "#7fb0ea",
    "pgbouncer": "#e08a1e",
    "haproxy": "#6aa84f",
    "envoy": "#a64d9c",
    "stunnel": "#8c8c8c",
    "direct": "#404040",
}


def draw(readings: Readings, target: Path) -> None:
    """Draw all panels that have readings into a PNG file."""
    panels = [panel for panel in PANELS if readings.cases(panel[0])]
    rows = max(1, -(-len(panels) // 3))
    figure, axes = plt.subplots(rows, 3, figsize=(15, 3.8 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (measure, case, metric, title) in zip(axes.flat, panels, strict=False):
        _panel(axis, readings, measure, [case] if case else readings.cases(measure), metric)
        axis.set_title(title, fontsize=11)
    bars = {
        label: bar for axis in axes.flat for bar, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(bars.values(), bars.keys(), loc="outside lower center", ncols=len(COLOURS), frameon=False)
    figure.suptitle("pgtlsproxy and its peers: median and range of interleaved rounds, less is better")
    figure.savefig(target, dpi=110)
    plt.close(figure)


def _panel(axis: Any, readings: Readings, measure: str, cases: Sequence[str], metric: str) -> None:
    peers = [
        peer
        for peer in COLOURS
        if any(readings.summary(measure, case, peer, metric) is not None for case in cases)
    ]
    width = 0.8 / max(1, len(peers))
    for place, peer in enumerate(peers):
        for group, case in enumerate(cases):
            summary = readings.summary(measure, case, peer, metric)
            if summary is None:
                continue
            middle = group + (place - (len(peers) - 1) / 2) * width
            label = peer if group == 0 else None
            error = [[summary.median - summary.lowest], [summary.highest - summary.median]]
            axis.bar(middle, summary.median, width, color=COLOURS[peer], label=label)
            axis.errorbar(middle, summary.median, yerr=error, color="black", linewidth=0.8, capsize=2)
    axis.set_xticks(range(len(cases)), cases)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
