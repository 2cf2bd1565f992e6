"""The figures of GPU memory that is moved past the driver; pure functions, as figures.py.

A worker is run twice in one run, as it is and with everything left to the driver: the second one's
name ends in DRIVER.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu.cells import GIB, Row, gib, number, of, rate, ratio, seconds
from gpu.figures import (
    COLD,
    HELD,
    LATER,
    STOCK,
    WARM,
    Document,
    by_driver,
    middle,
    moved,
    on_gpu,
    workers,
)

DRIVER = "-driver"


def beside(found: Document) -> list[Row]:
    """From the pod's creation to the first token, by whatever brings GPU memory back."""
    rows: list[Row] = [
        (
            *("create → first token, seconds", "cold", "from the node's cache"),
            *("from the page cache", "by the driver", "stock CRIU", "driver / moved"),
            "stock / moved",
        )
    ]
    everybody = dict(workers(found))
    for name, worker in everybody.items():
        if not moved(worker.get("thaw", {})):
            continue
        warm = middle(worker["thaw"], WARM)
        held = middle(worker["thaw"], HELD)
        ours = (held or warm).get("answered")
        other = everybody.get(f"{name}{DRIVER}", {})
        theirs = middle(other.get("thaw", {}), WARM).get("answered")
        stock = middle(worker.get("stock", {}) or other.get("stock", {}), WARM).get("answered")
        cold = worker["thaw"].get("cold", {}).get("answered")
        times = map(seconds, (cold, held.get("answered"), warm.get("answered"), theirs, stock))
        rows.append((name, *times, ratio(theirs, ours), ratio(stock, ours)))
    return rows


def alone(found: Document) -> list[Row]:
    """The restores without pods, and without the first answer: until the worker may run."""
    rows: list[Row] = [
        (
            *("restore alone, seconds", "stock CRIU + driver", "from the node's cache, at once"),
            *("stock / moved", "0.5 s after the sandbox", "stock / moved"),
        )
    ]
    for name, worker in workers(found):
        stock = middle(worker.get("stock", {}), WARM)
        theirs = sum(map(stock.__getitem__, STOCK)) if stock.keys() >= STOCK.keys() else None
        held, later = (
            middle(worker.get("thaw", {}), cache).get("restored", {}).get("seconds")
            for cache in (HELD, LATER)
        )
        if held is not None:
            both = (seconds(held), ratio(theirs, held), seconds(later), ratio(theirs, later))
            rows.append((name, seconds(theirs), *both))
    return rows


def moving(found: Document) -> list[Row]:
    """GiB/s of suspend and resume, against what the machine's bus and disk can do."""
    top = found.get("ceilings", {})
    to, back, disk = top.get("pinned"), top.get("pinned back"), top.get("disk")
    rows: list[Row] = [
        (
            *("GPU memory moved", "GiB", "stored", "suspend, s", "copy out, GiB/s"),
            *("fill, from the node's cache", "from the page cache", "from the disk"),
            *("waited for, s", "give, s"),
        )
    ]
    for name, worker in workers(found):
        thaw = worker.get("thaw", {})
        if not moved(thaw):
            continue
        steps, said = thaw["snapshot"]["steps"], thaw["snapshot"].get("said", {})
        held, warm, cold = (middle(thaw, cache) for cache in (HELD, WARM, COLD))
        stored = _bytes(said, "stored")
        rows.append(
            (
                *(name, gib(moved(thaw)), gib(stored), seconds(_away(steps))),
                of(rate(stored, steps.get("copy")), back),
                *(of(_filled(held), to), of(_filled(warm), to), of(_filled(cold), disk)),
                seconds(_gpu(held or warm).get("filled")),
                seconds(_gpu(held or warm).get("give")),
            )
        )
    ends = (number(back), number(to), number(to), number(disk))
    ceiling = ("ceiling", "-", "-", "-", *ends, "-", "-")
    return [*rows, ceiling] if len(rows) > 1 else rows


def kept(found: Document) -> list[Row]:
    """What a snapshot takes, with zeros left out; and what stayed with the driver, and why."""
    rows: list[Row] = [
        (
            *("snapshot, GiB", "on the GPU", "moved", "of it not zero", "the whole snapshot"),
            *("stock CRIU's", "by the driver", "as they call it"),
        )
    ]
    for name, worker in workers(found):
        thaw = worker.get("thaw", {})
        if not moved(thaw):
            continue
        made = thaw["snapshot"]
        left: dict[str, int] = {}
        for process in made["gpu"]["processes"]:
            for kind, size in process.get("left", {}).items():
                left[kind] = left.get(kind, 0) + size
        words = ", ".join(f"{size >> 20} MiB {kind}" for kind, size in left.items()) or "nothing"
        rows.append(
            (
                *(name, gib(on_gpu(thaw)), gib(moved(thaw))),
                gib(_bytes(made.get("said", {}), "stored")),
                *(gib(made["bytes"]), gib(worker.get("stock", {}).get("bytes"))),
                *(gib(by_driver(thaw)), words),
            )
        )
    return rows


def rounds(found: Document) -> list[Row]:
    """Restored and snapshotted again, each from the one before."""
    rows: list[Row] = [("in a row", "rounds", "all the same", "restored, s", "snapshot, s")]
    for name, worker in workers(found):
        made = worker.get("thaw", {}).get("rounds", [])
        if made:
            spans = (_between([one[key] for one in made]) for key in ("restored", "snapshot"))
            rows.append((name, str(len(made)), "yes", *spans))
    return rows


def overhead(found: Document) -> list[Row]:
    """What a program pays for the library; see overhead.py."""
    told = found.get("overhead", {})
    rows: list[Row] = [("of a program", "driver", "with the library", "library / driver")]
    for name, plain in told.get("driver", {}).items():
        ours = told.get("library", {}).get(name)
        if ours is not None:
            share = f"{ours / plain:.3f}" if plain else "-"
            unit = 1 << 20 if name == "memory" else 1
            rows.append((_UNITS.get(name, f"{name} MiB, µs"), *_two(plain, ours, unit), share))
    return rows


def sanitized(found: Document) -> list[Row]:
    """What compute-sanitizer found while memory was away and back; see sanitizer.py."""
    rows: list[Row] = [("compute-sanitizer", "errors", "without the library", "GiB away and back")]
    for name, told in found.get("sanitizer", {}).items():
        rows.append((name, str(told["errors"]), str(told["without"]), gib(told["moved"])))
    return rows


_UNITS = {
    "launch": "launch, µs",
    "graph": "graph of 20, µs",
    "multiply": "multiply, TFLOP/s",
    "to": "pinned → GPU, GiB/s",
    "from": "GPU → pinned, GiB/s",
    "within": "within the GPU, GiB/s",
    "small copies": "copy of 4 KiB, µs",
    "memory": "a model's memory, MiB",
}
_AWAY = ("hold", "export", "empty", "lock", "device")


def _away(steps: Mapping[str, float]) -> float | None:
    """Until nothing of it is on a GPU for the driver; the copies go on beside the dump."""
    there = [steps[step] for step in _AWAY if step in steps]
    return sum(there) if there else None


def _gpu(restore: Document) -> dict[str, Any]:
    told: dict[str, Any] = restore.get("restored", {}).get("gpu", {})
    return told


def _filled(restore: Document) -> float | None:
    """GiB/s of what was copied; zeros are made."""
    return rate(_bytes(_gpu(restore), "stored"), _gpu(restore).get("fill"))


def _bytes(said: Mapping[str, Any], name: str) -> int | None:
    """Of a line of the log, which has GiB."""
    return int(float(said[name]) * GIB) if said.get(name) else None


def _two(plain: float, ours: float, unit: int) -> tuple[str, str]:
    return f"{plain / unit:.1f}", f"{ours / unit:.1f}"


def _between(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"
