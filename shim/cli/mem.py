"""`thaw mem`: where the bytes of a snapshot are, by process, by kind and by mapping."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shim.cli import output, subject
from shim.cli.subject import Subject
from shim.config import Config
from shim.errors import InvalidArgument
from shim.snapshot.inspection import Inspection
from shim.snapshot.pieces import gpu_pieces
from shim.snapshot.resident import NONE, PRIVATE, Bytes
from shim.snapshot.store import size_of

_TOP = 10
_FIGURES = ("MAPPED", "RESIDENT", "BULK", "CRIU", "ZERO")


@dataclass(frozen=True)
class Line:
    """Some memory, and where its bytes are."""

    process: str  # who has it; empty for all
    kind: str
    what: str
    bytes: Bytes


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("snapshot", metavar="REF|DIR", help="as for `thaw inspect`")
    parser.add_argument(
        "--top", type=int, default=_TOP, metavar="N", help="of the mappings; default: %(default)s"
    )


def run(args: argparse.Namespace, config: Config) -> int:
    """Print what takes the room."""
    if args.top < 0:
        raise InvalidArgument(f"--top {args.top} is less than nothing")
    with subject.opened(args.snapshot, config) as opened:
        found = opened.look()
        disk = _on_disk(opened)
    document = {
        "memory": asdict(found.total),
        "kinds": by_kind(found),
        "processes": by_process(found),
        "mappings": largest(found, args.top),
        "disk": disk,
        "notes": found.notes,
    }
    output.emit(args, document, lambda: _lines(document, found))
    return 0


def by_kind(found: Inspection) -> list[Line]:
    """All memory by kind, the largest first; what is shared counts once."""
    sums: dict[str, Bytes] = {}
    for kind, part in _parts(found):
        sums[kind] = sums.get(kind, NONE) + part
    return _sorted(Line("", kind, "", part) for kind, part in sums.items())


def by_process(found: Inspection) -> list[Line]:
    """The private memory of each process, and all that is shared, the largest first."""
    lines = [Line(f"{p.pid} {p.name}", PRIVATE, p.executable, p.bytes) for p in found.processes]
    lines += [
        Line(" ".join(map(str, s.pids)) or "-", s.kind, s.name or f"object {s.number}", s.bytes)
        for s in found.shared
    ]
    return _sorted(lines)


def largest(found: Inspection, count: int) -> list[Line]:
    """The mappings with the most in the images; of what is shared, those of its first process."""
    seen = set()
    lines = []
    for process in found.processes:
        for m in process.mappings:
            if m.space.kind != PRIVATE:
                if (m.space, m.offset) in seen:
                    continue
                seen.add((m.space, m.offset))
            what = f"{m.start:x}-{m.end:x} {m.protection} {m.name}".rstrip()
            lines.append(Line(f"{process.pid} {process.name}", m.kind, what, m.bytes))
    return _sorted(lines)[:count]


def _parts(found: Inspection) -> Iterator[tuple[str, Bytes]]:
    for process in found.processes:
        for mapping in process.mappings:
            if mapping.space.kind == PRIVATE:
                yield mapping.kind, mapping.bytes
    for shared in found.shared:
        yield shared.kind, shared.bytes


def _sorted(lines: Iterable[Line]) -> list[Line]:
    return sorted(lines, key=lambda line: (line.bytes.resident, line.bytes.size), reverse=True)


def _on_disk(opened: Subject) -> dict[str, int]:
    """Bytes on disk of the parts of a snapshot; of a bare folder, all of it."""
    if opened.snapshot is None:
        return {"images": size_of(opened.path)}
    made = opened.snapshot
    pages = _blocks(made.piece(name) for name in made.config.pages)
    gpu = _blocks(made.piece(name) for name, _ in gpu_pieces(made.config.pages))
    whole = pages if made.criu in made.pages else 0  # as containerd wants a checkpoint
    return {
        "pages": pages - gpu,
        "GPU memory": gpu,
        "images": size_of(made.criu) - whole,
        "index": size_of(made.index),
        "root difference": _blocks(made.difference.parts()) if made.config.difference else 0,
        "volumes": size_of(made.path / "volumes"),
    }


def _blocks(paths: Iterable[Path]) -> int:
    return sum(path.lstat().st_blocks * 512 for path in paths if path.exists())


def _lines(document: dict[str, Any], found: Inspection) -> Iterator[str]:
    yield from output.table(("KIND", *_FIGURES), map(_of_kind, document["kinds"]), set(_FIGURES))
    yield ""
    heads = ("PROCESS", "KIND", *_FIGURES, "WHAT")
    yield from output.table(heads, map(_full, document["processes"]), set(_FIGURES))
    if document["mappings"]:
        yield ""
        yield from output.table(heads, map(_full, document["mappings"]), set(_FIGURES))
    yield ""
    disk = ", ".join(f"{name} {output.size(n)}" for name, n in document["disk"].items() if n)
    total = found.total
    yield f"in memory: {output.size(total.resident)} of {output.size(total.size)} mapped"
    yield f"on disk: {disk}"
    yield from (f"note: {note}" for note in found.notes)


def _of_kind(line: Line) -> tuple[str, ...]:
    return (line.kind, *_figures(line.bytes))


def _full(line: Line) -> tuple[str, ...]:
    return (line.process, line.kind, *_figures(line.bytes), line.what or "-")


def _figures(found: Bytes) -> tuple[str, ...]:
    numbers = (found.size, found.resident, found.bulk, found.left, found.zero)
    return tuple(map(output.size, numbers))
