"""The benchmark's figures as a document and as a table."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .bare import Failed

Row = dict[str, Any]  # a measure.Figures

_HEADS = (
    ("size", "GiB"),
    ("processes", ""),
    ("threads", ""),
    ("fill", "GiB/s"),
    ("memcpy", "GiB/s"),
    ("", "%"),
    ("cold", "GiB/s"),
    ("fio", "GiB/s"),
    ("", "%"),
    ("stock", "s"),
    ("Thaw", "s"),
    ("ratio", ""),
    ("stock cold", "s"),
    ("Thaw cold", "s"),
    ("ratio", ""),
)


def document(rows: Sequence[Row], criu: str) -> dict[str, object]:
    """What -o json prints: what it was measured on, and the figures of each case."""
    machine = {
        "processors": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "criu": criu,
    }
    return {"machine": machine, "cases": [_rounded(row) for row in rows]}


def load(path: Path) -> dict[str, object]:
    """A document that -o json has printed. Raises Failed."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Failed(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("cases"), list):
        raise Failed(f"{path} is nothing that -o json has printed")
    return found


def table(measured: dict[str, Any]) -> str:
    """The figures for people, with each ceiling beside what it is for."""
    machine = measured["machine"]
    lines = [
        f"{machine['processors']} processors, {machine['memory_gib']} GiB of memory",
        f"Linux {machine['kernel']}, CRIU {machine['criu']}",
        "",
    ]
    rows = [list(names) for names in zip(*_HEADS, strict=True)]
    rows += [_cells(row) for row in measured["cases"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    return [
        f"{row['size_gib']:g}",
        str(row["processes"]),
        f"{row['threads']}" + (" huge" if row["pages"] == "huge" else ""),
        _number(row["fill_gib_s"]),
        _number(row["memcpy_gib_s"]),
        _percent(row["fill_gib_s"], row["memcpy_gib_s"]),
        _number(row["cold_gib_s"]),
        _number(row["fio_gib_s"]),
        _percent(row["cold_gib_s"], row["fio_gib_s"]),
        _number(row["stock_s"]),
        _number(row["thaw_s"]),
        _number(_quotient(row["stock_s"], row["thaw_s"]), 1),
        _number(row["stock_cold_s"]),
        _number(row["thaw_cold_s"]),
        _number(_quotient(row["stock_cold_s"], row["thaw_cold_s"]), 1),
    ]


def _rounded(row: Row) -> Row:
    return {key: round(item, 4) if isinstance(item, float) else item for key, item in row.items()}


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(part: float | None, whole: float | None) -> str:
    share = _quotient(part, whole)
    return "-" if share is None else f"{share * 100:.0f}"


def _quotient(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other
