"""The benchmark's figures as a picture: throughput over threads, and time over size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .report import Row

_COLOURS = {"fill": "C0", "memcpy": "C0", "cold": "C1", "fio": "C1", "stock": "C3", "thaw": "C0"}
_RATES = (
    ("fill_gib_s", "Thaw, warm", "fill", "-"),
    ("memcpy_gib_s", "ceiling: memcpy", "memcpy", ":"),
    ("cold_gib_s", "Thaw, cold", "cold", "-"),
    ("fio_gib_s", "ceiling: fio", "fio", ":"),
)
_TIMES = (
    ("stock_s", "stock CRIU, warm", "stock", "-"),
    ("thaw_s", "Thaw, warm", "thaw", "-"),
    ("stock_cold_s", "stock CRIU, cold", "stock", "--"),
    ("thaw_cold_s", "Thaw, cold", "cold", "--"),
)


def draw(measured: dict[str, Any], path: Path) -> None:
    """Draw a document of report.py into a file, as what its name ends in."""
    # The same figures make the same file; text stays text.
    mpl.rcParams.update({"svg.hashsalt": "thaw", "svg.fonttype": "none", "font.size": 9})
    rows: list[Row] = measured["cases"]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _throughput(left, rows)
    _time(right, rows)
    machine = measured["machine"]
    figure.suptitle(
        f"{machine['processors']} processors, {machine['memory_gib']} GiB of memory, "
        f"CRIU {machine['criu']}"
    )
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=metadata)


def _throughput(axes: Axes, rows: Sequence[Row]) -> None:
    """Of the worker that was restored with most numbers of threads; of these, the largest."""
    kinds = Counter((row["size_gib"], -row["processes"], row["pages"]) for row in rows)
    size, processes, pages = max(kinds, key=lambda kind: (kinds[kind], kind))
    chosen = [
        row
        for row in rows
        if (row["size_gib"], row["processes"], row["pages"]) == (size, -processes, pages)
    ]
    _lines(axes, chosen, _RATES, lambda row: row["threads"])
    axes.set(xlabel="threads", ylabel="GiB/s", title=f"Throughput, {size:g} GiB, {pages} pages")
    axes.set_xticks(sorted({row["threads"] for row in chosen}))
    _finish(axes)


def _time(axes: Axes, rows: Sequence[Row]) -> None:
    """Of all sizes, with the number of threads that most of them had; in one process."""
    pages = Counter(row["pages"] for row in rows).most_common(1)[0][0]
    processes = min(row["processes"] for row in rows)
    alike = [row for row in rows if (row["pages"], row["processes"]) == (pages, processes)]
    sizes = {(row["threads"], row["size_gib"]) for row in alike}
    counts = Counter(threads for threads, _ in sizes)
    threads = max(counts, key=lambda number: (counts[number], number))
    chosen = sorted(
        (row for row in alike if row["threads"] == threads), key=lambda row: float(row["size_gib"])
    )
    _lines(axes, chosen, _TIMES, lambda row: row["size_gib"])
    axes.set(xlabel="GiB", ylabel="seconds", title=f"Time to restore, {threads} threads")
    axes.set_xlim(left=0)
    _finish(axes)


def _lines(
    axes: Axes,
    rows: Sequence[Row],
    kinds: Iterable[tuple[str, str, str, str]],
    place: Callable[[Row], float],
) -> None:
    ordered = sorted(rows, key=place)
    for key, label, colour, style in kinds:
        points = [(place(row), row[key]) for row in ordered if row[key] is not None]
        if points:
            across, up = zip(*points, strict=True)
            look: dict[str, Any] = {"color": _COLOURS[colour], "linestyle": style, "label": label}
            axes.plot(across, up, marker="o", markersize=3, **look)


def _finish(axes: Axes) -> None:
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
