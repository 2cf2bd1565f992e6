"""Where snapshots, state and records lie."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from shim.doctor.node import Node
from shim.doctor.verdict import Verdict, absent, bad, ok
from shim.errors import Unfit
from shim.snapshot.host import on_tmpfs
from shim.snapshot.store import check_owner

GIB = 1 << 30
_LITTLE = 10 * GIB  # a snapshot of a worker without a GPU takes as much
_PAGE = 4096


def configuration(node: Node) -> Iterator[Verdict]:
    """Thaw's configuration can be read."""
    if node.error:
        yield bad(node.error, "README.md lists the keys; without a file the defaults are in force")
    else:
        yield ok("the defaults" if node.config.source == "defaults" else node.config.source)


def folders(node: Node) -> Iterator[Verdict]:
    """Stores and stripes are there, and root's alone."""
    for folder in _folders(node):
        try:
            if not os.path.lexists(folder):
                yield bad(f"there is no {folder}", f"mkdir -p -m 700 {folder}", str(folder))
                continue
            check_owner(folder)
        except Unfit as error:
            yield bad(error.message, error.hint, str(folder))
        else:
            yield ok(f"{folder} on {_file_system(node, folder)}", str(folder))


def space(node: Node) -> Iterator[Verdict]:
    """There is room for a snapshot where new ones go."""
    for folder in _present(node, _written(node)):
        found = os.statvfs(folder)
        free, size = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        said = f"{free / GIB:.1f} of {size / GIB:.1f} GiB are free in {folder}"
        if free < _LITTLE:
            yield bad(said, "`thaw gc` removes what nobody uses; see retention.size", str(folder))
        else:
            yield ok(said, str(folder))


def direct(node: Node) -> Iterator[Verdict]:
    """Memory can be read past the page cache."""
    fix = "put the store on ext4 or XFS: what is read twice over takes twice the memory"
    yield from _tried(node, _read_directly, "direct I/O", fix)


def links(node: Node) -> Iterator[Verdict]:
    """A blob of the artifact can be a second name of a file of the snapshot."""
    fix = "put the store on a file system with hard links: sealing fails without"
    yield from _tried(node, _link, "hard links", fix)


def state(node: Node) -> Iterator[Verdict]:
    """What lives as long as a container does not outlive the machine."""
    folder = _existing(Path(node.config.text("state")))
    if on_tmpfs(str(folder)):
        yield ok(f"{node.config.text('state')} is on a tmpfs")
    else:
        yield bad(
            f"{node.config.text('state')} is not on a tmpfs",
            "after a crash of the machine its remains would be taken for containers: "
            "set state to a folder below /run",
        )


def audit(node: Node) -> Iterator[Verdict]:
    """There is a place for the record of what was restored, and by whom."""
    path = node.config.text("audit.log")
    if not path:
        yield absent("audit.log is empty: nothing is recorded", "name a file, if you need one")
        return
    there = os.path.lexists(path)
    place = Path(path) if there else _existing(Path(path).parent)
    right = place.is_file() if there else place.is_dir()
    if right and os.access(place, os.W_OK):
        yield ok(path)
    else:
        yield bad(f"{path} cannot be written", f"make {place} writable, or change audit.log")


def credentials(node: Node) -> Iterator[Verdict]:
    """Nobody but root can read the registries' credentials."""
    path = node.config.text("registry.auth")
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        yield absent(f"no {path}: registries are asked without", "write one for private registries")
        return
    if not stat.S_ISREG(info.st_mode):
        yield bad(f"{path} is no file", "a file in the form of docker's config.json is meant")
    elif info.st_uid not in (0, node.user) or info.st_mode & 0o077:
        yield bad(
            f"{path} has mode {stat.S_IMODE(info.st_mode):04o}, owner {info.st_uid}",
            f"chown root {path} && chmod 600 {path}",
        )
    else:
        yield ok(path)


def _folders(node: Node) -> list[Path]:
    return [Path(f) for f in (*node.config.several("snapshots"), *node.config.several("stripes"))]


def _written(node: Node) -> list[Path]:
    """Where new snapshots go."""
    named = (*node.config.several("snapshots")[:1], *node.config.several("stripes"))
    return [Path(folder) for folder in named]


def _present(_node: Node, found: list[Path]) -> Iterator[Path]:
    return (folder for folder in found if folder.is_dir())  # folders() has said that it is missing


def _tried(node: Node, attempt: Callable[[Path], None], what: str, fix: str) -> Iterator[Verdict]:
    for folder in _present(node, _written(node)):
        path = folder / f".doctor-{os.urandom(6).hex()}"
        try:
            path.write_bytes(bytes(_PAGE))
            attempt(path)
        except OSError as error:
            yield bad(f"no {what} in {folder}: {error.strerror}", fix, str(folder))
        else:
            yield ok(f"{what} in {folder}", str(folder))
        finally:
            path.unlink(missing_ok=True)


def _read_directly(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, _PAGE) as buffer:  # aligned as it must be
            os.readv(fd, [buffer])
    finally:
        os.close(fd)


def _link(path: Path) -> None:
    second = path.with_name(path.name + ".link")
    os.link(path, second)
    second.unlink()


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that there is."""
    return next(p for p in (path, *path.parents) if p.exists())


def _file_system(node: Node, folder: Path) -> str:
    """The type of the file system that holds a folder, as its mount says; see proc(5)."""
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in node.read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        words = before.split()
        if len(words) > 2 and words[2] == wanted and after:
            return after.split()[0]
    return "a file system that is not mounted here"
