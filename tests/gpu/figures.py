"""The figures of a run, as tables: pure functions of the document that run.py writes.

What a restore took is told by two clocks: the caller's (pod created → … → first token) and the
engine's, whose steps lie within StartContainer. The driver's own copy is the one thing that nobody
can do for it; what is "outside" is all the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu.cells import GIB, Row, gib, number, of, rate, ratio, seconds

Document = Mapping[str, Any]
COLD, WARM = "cold", "warm"  # what the page cache is, of the snapshot's files
HELD = "held"  # warm, and the node's cache has what is for the GPU
LATER = "later"  # the same, and the container comes a while after its sandbox
STOCK = {"criu": "CRIU", "restore": "CUDA restore", "unlock": "unlock"}  # its parts, and our words


def overview(found: Document) -> list[Row]:
    """Each worker: cold, restored, and what stock CRIU with the driver's calls takes."""
    rows: list[Row] = [
        (
            *("worker", "on the GPU", "cold start", "restored, page cache warm", "from the disk"),
            *("stock CRIU + driver, warm", "ratio", "from the disk", "outside the driver's copy"),
        )
    ]
    for name, worker in workers(found):
        thaw, stock = worker.get("thaw", {}), worker.get("stock", {})
        warm, theirs = middle(thaw, WARM), middle(stock, WARM)
        rows.append(
            (
                name,
                gib(on_gpu(thaw)),
                seconds(thaw.get("cold", {}).get("answered")),
                seconds(warm.get("answered")),
                seconds(middle(thaw, COLD).get("answered")),
                seconds(theirs.get("answered")),
                ratio(theirs.get("answered"), warm.get("answered")),
                seconds(middle(stock, COLD).get("answered")),
                seconds(outside(warm)),
            )
        )
    return rows


def starts(found: Document) -> list[Row]:
    """What a cold start is made of; the last part is the worker's own: imports, weights, graphs."""
    rows: list[Row] = [("cold start, seconds", "pod", "create", "start", "first token", "all")]
    for name, worker in workers(found):
        cold = worker.get("thaw", {}).get("cold", {})
        if "started" in cold:
            ends = [cold[end] for end in ("pod", "created", "started", "answered")]
            each = [end - begin for begin, end in zip([0.0, *ends], ends, strict=False)]
            rows.append((name, *map(seconds, each), seconds(ends[-1])))
    return rows


# What a restore is made of, and the engine's steps that each of it stands for.
_PARTS = (
    ("plan, files", ("plan", "control", "volumes", "difference", "rootfs", "assemble", "hold")),
    ("CRIU and fill", ("criu",)),
    ("adopt", ("disassemble", "hostname", "adopt", "introduce", "complete", "release")),
    ("resume, canary", ("resume", "canary")),
)


def parts(restore: Document) -> list[tuple[str, float]]:
    """The phases of one restore in order, in seconds; together they are all of its time."""
    told = restore.get("restored", {})
    steps, cuda, gpu = (told.get(part, {}) for part in ("timeline", "cuda", "gpu"))
    sums = {name: sum(steps.get(step, 0.0) for step in of) for name, of in _PARTS}
    inside = {
        "plan, files": sums["plan, files"],
        "CRIU and fill": sums["CRIU and fill"],
        "CUDA restore": cuda.get("restore", steps.get("device", 0.0)),
        "unlock": cuda.get("unlock", 0.0),
        "GPU memory": gpu.get("filled", 0.0) + gpu.get("give", 0.0),
        "adopt": sums["adopt"],
        "resume, canary": sums["resume, canary"],
    }
    starting = restore["started"] - restore["created"]
    return [
        ("pod", restore["pod"]),
        ("create", restore["created"] - restore["pod"]),
        ("start, other", max(0.0, starting - sum(inside.values()))),
        *inside.items(),
        ("first token", restore["answered"] - restore["started"]),
    ]


def phases(found: Document) -> list[Row]:
    """The middle warm restore of each worker, phase by phase."""
    typical = {name: middle(worker.get("thaw", {}), WARM) for name, worker in workers(found)}
    typical = {name: restore for name, restore in typical.items() if restore}
    if not typical:
        return []
    columns = {name: dict(parts(restore)) for name, restore in typical.items()}
    rows: list[Row] = [("restore, page cache warm, seconds", *columns)]
    for part in next(iter(columns.values())):
        rows.append((part, *(seconds(column[part]) for column in columns.values())))
        if part == "CRIU and fill":
            fills = [seconds(restore["restored"].get("fill")) for restore in typical.values()]
            rows.append(("of it, the fill", *fills))
    rows.append(("all", *(seconds(restore["answered"]) for restore in typical.values())))
    return rows


_AWAY = ("quiesce", "hold", "lock", "device", "pages", "dump", "device back", "give")


def checkpoints(found: Document) -> list[Row]:
    """What a snapshot takes, beside stock CRIU."""
    rows: list[Row] = [
        ("checkpoint, seconds", *_AWAY, "all", "GiB", "stock: device", "stock: dump", "stock: GiB")
    ]
    for name, worker in workers(found):
        made = worker.get("thaw", {}).get("snapshot")
        if made is None:
            continue
        steps, stock = made["steps"], worker.get("stock", {})
        theirs = stock.get("checkpoint", {})
        rows.append(
            (
                name,
                *(seconds(steps.get(step)) for step in _AWAY),
                seconds(made["seconds"]),
                gib(made["bytes"]),
                seconds(theirs.get("checkpoint")),
                seconds(theirs.get("dump")),
                gib(stock.get("bytes")),
            )
        )
    return rows


def rates(found: Document) -> list[Row]:
    """GiB/s of what moves bytes, each against what this machine can do at best."""
    top = found.get("ceilings", {})
    copy = max(top.get("memcpy", 0.0), top.get("memcpy huge", 0.0)) or None
    disk, pcie = top.get("disk"), top.get("pinned")
    rows: list[Row] = [
        ("GiB/s", "fill, warm", "fill, from the disk", "CUDA restore", "CUDA checkpoint", "pages")
    ]
    for name, worker in workers(found):
        thaw = worker.get("thaw", {})
        steps = thaw.get("snapshot", {}).get("steps", {})
        size, copied = thaw.get("snapshot", {}).get("bytes"), by_driver(thaw)
        warm = middle(thaw, WARM)
        rows.append(
            (
                name,
                of(filled(warm), copy),
                of(filled(middle(thaw, COLD)), disk),
                of(rate(copied, warm.get("restored", {}).get("cuda", {}).get("restore")), pcie),
                of(rate(copied, steps.get("device")), top.get("pinned back")),
                of(rate(size, steps.get("pages")), disk),
            )
        )
    ceiling = (number(copy), number(disk), number(pcie), number(top.get("pinned back")))
    return [*rows, ("ceiling", *ceiling, number(disk))] if len(rows) > 1 else rows


def faults(found: Document) -> list[Row]:
    """What went wrong on purpose, and what came of it."""
    rows: list[Row] = [("fault", "seconds", "outcome")]
    for name, told in found.get("faults", {}).items():
        mark = "" if told["good"] else "NOT AS IT SHOULD BE: "
        rows.append((name, f"{told['seconds']:.1f}", mark + told["outcome"]))
    return rows


def outside(restore: Document) -> float | None:
    """Seconds of a restore that are not the driver's own copy."""
    if "answered" not in restore:
        return None
    driver = restore.get("restored", {}).get("cuda", {}).get("restore")
    return None if driver is None else float(restore["answered"]) - float(driver)


def workers(found: Document) -> list[tuple[str, Document]]:
    return list(found.get("workers", {}).items())


def middle(side: Document, cache: str) -> Document:
    """The restore under a condition that half were no slower than (of two, the slower one); {} if
    there is none.
    """
    there = [one for one in side.get("restores", []) if one["cache"] == cache]
    there.sort(key=lambda one: float(one["answered"]))
    return there[len(there) // 2] if there else {}


def on_gpu(thaw: Document) -> int | None:
    """Bytes that the worker has on its GPUs."""
    return ((by_driver(thaw) or 0) + moved(thaw)) or None


def by_driver(thaw: Document) -> int | None:
    """What of them the driver saves and brings back."""
    memory = thaw.get("snapshot", {}).get("gpu", {}).get("memory", {})
    return sum(memory.values()) or None


def moved(thaw: Document) -> int:
    """What of them goes past the driver."""
    processes = thaw.get("snapshot", {}).get("gpu", {}).get("processes", [])
    return sum(region["size"] for one in processes for region in one.get("regions", []))


def filled(restore: Document) -> float | None:
    told = restore.get("restored", {})
    size = told.get("gib")
    return rate(None if size is None else int(float(size) * GIB), told.get("fill"))
