"""`thaw inspect`: a snapshot's processes, their memory, files and sockets, its mounts and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from shim.cli import output, subject
from shim.cli.subject import Subject
from shim.config import Config
from shim.snapshot.archive import Archive
from shim.snapshot.inspection import Inspection, Mapping, Process
from shim.snapshot.resident import Bytes


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "snapshot", metavar="REF|DIR", help="a reference, or a path to a folder of CRIU's images"
    )
    parser.add_argument("--maps", action="store_true", help="also every mapping of each process")
    parser.add_argument("--files", action="store_true", help="also the names of all saved files")


def run(args: argparse.Namespace, config: Config) -> int:
    """Print what is found."""
    with subject.opened(args.snapshot, config) as opened:
        found = opened.look()
        archives = _archives(opened)
    document = {
        "path": opened.path,
        "processes": found.processes,
        "shared": found.shared,
        "sockets": found.sockets,
        "mounts": found.mounts,
        "gpu": found.gpu,
        "extents": found.extents,
        "memory": asdict(found.total),
        "archives": archives,
        "notes": found.notes,
    }
    output.emit(args, document, lambda: _lines(found, archives, maps=args.maps, files=args.files))
    return 0


def _archives(opened: Subject) -> list[dict[str, Any]]:
    """The root difference and the volumes, with their members."""
    if opened.snapshot is None:
        return []
    made = opened.snapshot.config
    found = [("/", opened.snapshot.difference)] if made.difference else []
    found += [(path, opened.snapshot.volume(n)) for n, path in enumerate(made.volumes)]
    return [_archive(destination, archive) for destination, archive in found]


def _archive(destination: str, archive: Archive) -> dict[str, Any]:
    return {"destination": destination, "size": archive.size, "members": archive.names()}


def _lines(
    found: Inspection, archives: Sequence[dict[str, Any]], *, maps: bool, files: bool
) -> Iterator[str]:
    yield from _processes(found.processes)
    for process in found.processes:
        if process.files or (maps and process.mappings):
            yield ""
            yield f"process {process.pid} ({process.name}), {process.executable or 'no executable'}"
        yield from _files(process)
        if maps and process.mappings:
            yield from _maps(process.mappings)
    if found.sockets:
        yield ""
        yield from _sockets(found)
    if found.shared:
        yield ""
        yield from _shared(found)
    if found.mounts:
        yield ""
        rows = [(m.path, m.type, m.source, m.external or "-") for m in found.mounts]
        yield from output.table(("MOUNT", "TYPE", "SOURCE", "EXTERNAL"), rows)
    for archive in archives:
        yield ""
        count = len(archive["members"])
        many = "" if count == 1 else "s"
        size = output.size(archive["size"])
        yield f"saved of {archive['destination']}: {count} member{many}, {size}"
        yield from (f"  {name or '.'}" for name in archive["members"] if files)
    yield ""
    yield _total(found)
    yield from (f"note: {note}" for note in found.notes)


def _processes(processes: Sequence[Process]) -> list[str]:
    rows = [
        (
            process.pid,
            "  " * depth + (process.name or "?"),
            len(process.threads),
            "-" if process.user is None else process.user,
            process.state,
            process.seccomp or "-",
            len(process.files),
            process.extents,
            *_figures(process.bytes),
        )
        for depth, process in _tree(processes)
    ]
    heads = ("PID", "NAME", "THREADS", "UID", "STATE", "SECCOMP", "FILES", "EXTENTS", *_FIGURES)
    return output.table(heads, rows, right={"PID", "THREADS", "UID", "FILES", "EXTENTS", *_FIGURES})


_FIGURES = ("RESIDENT", "BULK", "CRIU", "ZERO")


def _figures(found: Bytes) -> tuple[str, ...]:
    """Where the bytes are, in the order of _FIGURES."""
    return tuple(output.size(n) for n in (found.resident, found.bulk, found.left, found.zero))


def _tree(processes: Sequence[Process]) -> Iterator[tuple[int, Process]]:
    """Each process once, after its parent, with its depth; whatever the parents say."""
    children: dict[int, list[Process]] = {}
    for process in processes:
        children.setdefault(process.parent, []).append(process)
    pids = {process.pid for process in processes}
    rest = dict.fromkeys(process.pid for process in processes)
    roots = [p for p in processes if p.parent not in pids or p.parent == p.pid]
    for root in [*roots, *processes]:  # all: those that are each other's parents have no root
        coming = [(0, root)]
        while coming:
            depth, process = coming.pop()
            if process.pid not in rest:
                continue
            del rest[process.pid]
            yield depth, process
            coming += [(depth + 1, child) for child in reversed(children.get(process.pid, []))]


def _files(process: Process) -> list[str]:
    rows = [(f"  {file.fd}", file.kind, file.name or "-") for file in process.files]
    return output.table(("  FD", "KIND", "WHAT"), rows) if rows else []


def _maps(mappings: Sequence[Mapping]) -> list[str]:
    rows = [
        (
            f"  {m.start:x}-{m.end:x}",
            m.protection,
            m.kind,
            output.size(m.bytes.size),
            *_figures(m.bytes),
            m.name or "-",
        )
        for m in mappings
    ]
    heads = ("  RANGE", "PROT", "KIND", "SIZE", *_FIGURES, "WHAT")
    return output.table(heads, rows, right={"SIZE", *_FIGURES})


def _sockets(found: Inspection) -> list[str]:
    rows = [
        (s.family, s.type, s.state, s.local or "-", s.remote or "-", " ".join(map(str, s.pids)))
        for s in found.sockets
    ]
    return output.table(("SOCKET", "TYPE", "STATE", "LOCAL", "REMOTE", "PIDS"), rows)


def _shared(found: Inspection) -> list[str]:
    rows = [
        (
            s.number,
            s.kind,
            s.name or "-",
            s.extents,
            *_figures(s.bytes),
            " ".join(map(str, s.pids)),
        )
        for s in found.shared
    ]
    heads = ("SHARED", "KIND", "NAME", "EXTENTS", *_FIGURES, "PIDS")
    return output.table(heads, rows, right={"SHARED", "EXTENTS", *_FIGURES})


def _total(found: Inspection) -> str:
    total, count = found.total, len(found.processes)
    return (
        f"{count} process{'' if count == 1 else 'es'}, "
        f"{output.size(total.resident)} in the images: "
        f"{output.size(total.bulk)} in {found.extents} extents, {output.size(total.left)} left to "
        f"CRIU, {output.size(total.zero)} zero; no GPU blobs"
    )
