"""The figures of a run, as tables: pure functions of the document that run.py writes.

What a restore took is told by two clocks: the caller's (pod created → … → first token) and the
engine's, whose steps lie within StartContainer. The driver's own copy is the one thing that nobody
can do for it; what is "outside" is all the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

GIB = 1 << 30
Row = tuple[str, ...]
Document = Mapping[str, Any]
WARM, COLD = "warm", "cold"


def report(found: Document) -> list[str]:
    """All that there is to say of a run, in Markdown."""
    tables = (
        *(overview(found), starts(found), phases(found)),
        *(checkpoints(found), rates(found), faults(found)),
    )
    lines = [_machine(found)] if found.get("machine") else []
    for rows in tables:
        if len(rows) > 1:
            lines += ["", *markdown(rows)]
    return lines


def markdown(rows: Sequence[Row]) -> list[str]:
    """A table; the first row is its head, and columns of numbers stand on the right."""
    head, *body = rows
    ends = ["--:" if all(map(_is_number, column)) else "---" for column in zip(*body, strict=True)]
    return [_line(head), _line(ends), *map(_line, body)]


def overview(found: Document) -> list[Row]:
    """Each worker: cold, restored, and what stock CRIU with the driver's calls takes."""
    rows: list[Row] = [
        (
            *("worker", "on the GPU", "cold start", "restored, page cache warm", "from the disk"),
            *("stock CRIU + driver, warm", "ratio", "from the disk", "outside the driver's copy"),
        )
    ]
    for name, worker in _workers(found):
        thaw, stock = worker.get("thaw", {}), worker.get("stock", {})
        warm, theirs = _best(thaw, WARM), _best(stock, WARM)
        rows.append(
            (
                name,
                _gib(_on_gpu(thaw)),
                _seconds(thaw.get("cold", {}).get("answered")),
                _seconds(warm.get("answered")),
                _seconds(_best(thaw, COLD).get("answered")),
                _seconds(theirs.get("answered")),
                _ratio(theirs.get("answered"), warm.get("answered")),
                _seconds(_best(stock, COLD).get("answered")),
                _seconds(outside(warm)),
            )
        )
    return rows


def starts(found: Document) -> list[Row]:
    """What a cold start is made of; the last part is the worker's own: imports, weights, graphs."""
    rows: list[Row] = [("cold start, seconds", "pod", "create", "start", "first token", "all")]
    for name, worker in _workers(found):
        cold = worker.get("thaw", {}).get("cold", {})
        if "started" in cold:
            ends = [cold[end] for end in ("pod", "created", "started", "answered")]
            each = [end - begin for begin, end in zip([0.0, *ends], ends, strict=False)]
            rows.append((name, *map(_seconds, each), _seconds(ends[-1])))
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
    steps, cuda = told.get("timeline", {}), told.get("cuda", {})
    sums = {name: sum(steps.get(step, 0.0) for step in of) for name, of in _PARTS}
    device = steps.get("device", 0.0)
    inside = {
        "plan, files": sums["plan, files"],
        "CRIU and fill": sums["CRIU and fill"],
        "CUDA restore": cuda.get("restore", device),
        "unlock": cuda.get("unlock", 0.0),
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
    """The best warm restore of each worker, phase by phase."""
    best = {name: _best(worker.get("thaw", {}), WARM) for name, worker in _workers(found)}
    best = {name: restore for name, restore in best.items() if restore}
    if not best:
        return []
    columns = {name: dict(parts(restore)) for name, restore in best.items()}
    rows: list[Row] = [("restore, page cache warm, seconds", *columns)]
    for part in next(iter(columns.values())):
        rows.append((part, *(_seconds(column[part]) for column in columns.values())))
        if part == "CRIU and fill":
            fills = [_seconds(restore["restored"].get("fill")) for restore in best.values()]
            rows.append(("of it, the fill", *fills))
    rows.append(("all", *(_seconds(restore["answered"]) for restore in best.values())))
    return rows


_AWAY = ("quiesce", "lock", "device", "pages", "dump", "device back")


def checkpoints(found: Document) -> list[Row]:
    """What a snapshot takes, beside stock CRIU."""
    rows: list[Row] = [
        ("checkpoint, seconds", *_AWAY, "all", "GiB", "stock: device", "stock: dump", "stock: GiB")
    ]
    for name, worker in _workers(found):
        made = worker.get("thaw", {}).get("snapshot")
        if made is None:
            continue
        steps, stock = made["steps"], worker.get("stock", {})
        theirs = stock.get("checkpoint", {})
        rows.append(
            (
                name,
                *(_seconds(steps.get(step)) for step in _AWAY),
                _seconds(made["seconds"]),
                _gib(made["bytes"]),
                _seconds(theirs.get("checkpoint")),
                _seconds(theirs.get("dump")),
                _gib(stock.get("bytes")),
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
    for name, worker in _workers(found):
        thaw = worker.get("thaw", {})
        steps = thaw.get("snapshot", {}).get("steps", {})
        size, moved = thaw.get("snapshot", {}).get("bytes"), _on_gpu(thaw)
        warm = _best(thaw, WARM)
        rows.append(
            (
                name,
                _of(_filled(warm), copy),
                _of(_filled(_best(thaw, COLD)), disk),
                _of(_rate(moved, warm.get("restored", {}).get("cuda", {}).get("restore")), pcie),
                _of(_rate(moved, steps.get("device")), top.get("pinned back")),
                _of(_rate(size, steps.get("pages")), disk),
            )
        )
    ceiling = (_number(copy), _number(disk), _number(pcie), _number(top.get("pinned back")))
    return [*rows, ("ceiling", *ceiling, _number(disk))] if len(rows) > 1 else rows


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


def _workers(found: Document) -> list[tuple[str, Document]]:
    return list(found.get("workers", {}).items())


def _best(side: Document, cache: str) -> Document:
    """The fastest restore under a condition; {} if there is none."""
    there = [one for one in side.get("restores", []) if one["cache"] == cache]
    return min(there, key=lambda one: float(one["answered"]), default={})


def _on_gpu(thaw: Document) -> int | None:
    """Bytes that the worker has on its GPUs."""
    memory = thaw.get("snapshot", {}).get("gpu", {}).get("memory", {})
    return sum(memory.values()) or None


def _filled(restore: Document) -> float | None:
    told = restore.get("restored", {})
    size = told.get("gib")
    return _rate(None if size is None else int(float(size) * GIB), told.get("fill"))


def _rate(size: int | None, seconds: float | None) -> float | None:
    return size / GIB / seconds if size and seconds else None


def _is_number(cell: str) -> bool:
    return cell == "-" or cell[:1].isdigit()


def _of(rate: float | None, ceiling: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate:.1f}" + (f" ({rate / ceiling:.0%})" if ceiling else "")


def _ratio(theirs: float | None, ours: float | None) -> str:
    return f"{theirs / ours:.1f} \u00d7" if theirs and ours else "-"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _gib(size: int | None) -> str:
    return "-" if size is None else f"{size / GIB:.1f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _machine(found: Document) -> str:
    machine = found["machine"]
    gpus = "; ".join(machine.get("gpus", [])) or "no GPU"
    return (
        f"{gpus}; {machine['processors']} processors, {machine['memory_gib']} GiB of memory, "
        f"Linux {machine['kernel']}"
    )
