"""The pages of a dump, written by us in parallel instead of by CRIU in one thread.

CRIU finds a link to /dev/null where it would make a file of pages. It writes its small images as
ever, the pagemaps included, and what it splices into /dev/null costs nothing. At its `post-dump`
stage, with the tasks still frozen, the pagemaps say which memory belongs where in which file, and
native/save.c puts it there: the files are what CRIU would have made, byte by byte, with holes for
zeros. On the way it makes the extents of the index. The tasks can run again as soon as all is read;
what is not written by then waits in memory.

In a snapshot of the store the files are pieces (snapshot/pieces.py), in folders of their own: the
images' folder has none then. What CRIU has written becomes pieces as soon as it is safe to.

The links are made at CRIU's `pre-dump` stage: a runtime that does not hand our action-script to
CRIU gets a plain dump. Neither CRIU nor runc looks at a pages file again after it was written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol, Self

from shim.errors import CheckpointFailed
from shim.processes import processes_below
from shim.removal import remove_folder
from shim.snapshot import indexing
from shim.snapshot.images import NotIndexable
from shim.snapshot.layout import BULK, COMPARED, NO_TASK, Layout, Run, by_turns, packed
from shim.snapshot.pieces import Piece, Pieces, created, gpu_number
from shim.snapshot.saving import MEMORY, SIZE, SaveFailed, Saving

# CRIU numbers the files from 1 on, one for every process and every shared memory. If there are
# more of them than we thought, it makes the rest itself, and those are as good.
_SLACK = 64
_NULL = "/dev/null"
_LINK = re.compile(r"pages-[0-9]+\.img")
_SHARED = re.compile(r"pagemap-shmem-([0-9]+)\.img")


class Pages(Protocol):
    """Who writes the pages files of one dump, and the index of its images."""

    refused: str  # why CRIU has to do what was tried here

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def divert(self) -> None:
        """At CRIU's stage pre-dump."""

    def save(self) -> None:
        """At CRIU's stage post-dump: the tasks are frozen, all small images are written."""

    def ensure_saved(self) -> None:
        """After CRIU has ended: raise CheckpointFailed if the memory is in no file."""

    def finish(self) -> None:
        """Any time later: wait until they are in their place. Raises CheckpointFailed."""

    def index(self, folder: Path) -> None:
        """Then: make the index in `folder`. Raises OSError."""


class Plain:
    """CRIU writes them, as it does without us. `pages`: folders for pieces, if they shall be."""

    refused = ""

    def __init__(self, images: Path, *, pages: Sequence[Path] | None = None) -> None:
        self._images = images
        self._pages = pages

    def __enter__(self) -> Self:
        _remove_links(self._images)  # of a dump that was killed here: CRIU would write through them
        _make(self._pages)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def divert(self) -> None:
        """CRIU finds nothing in its way."""

    def save(self) -> None:
        """They are there, and as long as they must be, as far as we understand the pagemaps."""
        try:
            layout = indexing.survey(self._images)
        except NotIndexable:
            return
        _check_sizes(layout, Pieces([self._images]))

    def ensure_saved(self) -> None:
        """CRIU has said so."""

    def finish(self) -> None:
        """They are written, as far as CRIU cares; make them pieces. Raises CheckpointFailed."""
        _take(self._images, self._pages)

    def index(self, folder: Path) -> None:
        """Make the index, or note why there is none. Reads the files."""
        indexing.make(self._images, folder, pages=self._pages)


class Parallel:
    """We write them. The images folder has no links of ours in it once this is left.

    `budget` is how many bytes may be read and not yet written. `pages`: the folders for pieces,
    ours alone, if pages files shall be in pieces; otherwise they are in `images`, whole.
    """

    def __init__(
        self, images: Path, init: int, budget: int = 0, *, pages: Sequence[Path] | None = None
    ) -> None:
        self.refused = ""
        self.images = images
        self._folders = pages
        self._pages = Pieces(pages if pages is not None else [images])
        self._budget = budget
        self._init = init  # the container's init, a pid of this machine
        self._before: set[str] = set()
        self._diverted = False
        self._layout: Layout | None = None
        self._open = ExitStack()
        self._saving: Saving | None = None
        self._extents = b""
        self._scanned: list[Run] = []  # the runs whose extents are known

    def __enter__(self) -> Self:
        _remove_links(self.images)
        _make(self._folders)
        self._before = set(os.listdir(self.images))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        if self.refused:
            # The pages are lost; what is left of these images must not mix with the next ones.
            for name in set(os.listdir(self.images)) - self._before:
                if gpu_number(name) is None:  # that is for all ways
                    remove_folder(str(self.images / name))
            if self._folders is not None:
                for path in self._pages.found().values():
                    path.unlink()
        _remove_links(self.images)

    def divert(self) -> None:
        """Put links in CRIU's way, as many as it might make files."""
        self._diverted = True
        pids = processes_below(self._init).values()
        for number in range(1, len(pids) + len(_shared_memory(pids)) + _SLACK + 1):
            link = self.images / f"pages-{number}.img"
            link.unlink(missing_ok=True)
            link.symlink_to(_NULL)

    def save(self) -> None:
        """Copy the memory of the frozen tasks to where the pagemaps say.

        Raises CheckpointFailed. `refused` says whether CRIU may be able to do what we are not.
        """
        try:
            self._save()
        except (NotIndexable, _Unreadable) as error:
            self.refused = str(error)
            raise CheckpointFailed(f"memory is not for us to save: {error}") from error
        except OSError as error:
            raise CheckpointFailed(f"cannot save memory: {error}") from error

    def _save(self) -> None:
        layout = indexing.survey(self.images)
        if self._folders is not None:
            layout = indexing.in_pieces(layout)
        names = [pagemap.pages for pagemap in layout.pagemaps]
        links = {number for number, name in enumerate(names) if _is_link(self.images / name)}
        _remove_links(self.images)
        files = [self._created(*item, links) for item in enumerate(layout.sources)]
        runs = [run for run in layout.runs if layout.sources[run.source].file in links]
        disks = [self._pages.place(number) for number in range(len(files))]
        with _Tasks(layout, self._init) as tasks:
            records = packed(tasks.placed(run) for run in by_turns(runs, disks))
            self._saving = Saving(records, files, tasks.pids, budget=self._budget)
            self._open.callback(self._saving.close)
            try:
                self._saving.wait_read()
            except SaveFailed as error:
                self._saving.close()  # its threads may still read what `tasks` is about to close
                if error.stage != MEMORY:
                    raise
                raise _Unreadable(str(error)) from error
        self._scanned = [run for run in runs if _scanned_now(run)]
        self._layout = layout

    def _created(self, number: int, piece: Piece, links: set[int]) -> tuple[str, int]:
        """A source's name and, if CRIU has not written it, a new file for it."""
        if piece.file not in links:
            return piece.name, -1
        path = self._pages.place(number) / piece.name
        return piece.name, self._open.enter_context(created(path, piece.size))

    def ensure_saved(self) -> None:
        """Raise CheckpointFailed if CRIU has not stopped for us, but has taken our way."""
        if self._diverted and self._layout is None:
            raise CheckpointFailed(
                "CRIU did not stop for the memory to be saved",
                hint="does something override its configuration?",
            )

    def finish(self) -> None:
        """Wait until all is written, and take what CRIU made after all. Raises CheckpointFailed."""
        try:
            self._extents = self._saving.finish() if self._saving is not None else b""
        except SaveFailed as error:
            raise CheckpointFailed(
                f"cannot save memory: {error}", hint="the container runs on"
            ) from error
        finally:
            self._open.close()
        _take(self.images, self._folders)
        if self._layout is not None:
            _check_sizes(self._layout, self._pages)

    def index(self, folder: Path) -> None:
        """Make the index, or note why there is none.

        Of the files only those are read that CRIU made after all, and memory that children may
        share with their parents.
        """
        if self._layout is None:  # nobody asked us: CRIU wrote the files
            indexing.make(self.images, folder, pages=self._folders)
            return
        try:
            layout = indexing.compare(self._layout, self._pages)
            known = set(self._scanned)
            rest = [run for run in layout.runs if run.flags & BULK and run not in known]
            extents = self._extents
            if rest:
                found = indexing.scan(replace(layout, runs=rest), self._pages)
                extents = _sorted(extents + found)
            folder.mkdir(mode=0o700)
            indexing.write(layout, extents, self.images, self._pages, folder)
        except NotIndexable:
            indexing.make(self.images, folder, pages=self._folders)  # says so


def _is_link(path: Path) -> bool:
    return path.is_symlink() and os.readlink(path) == _NULL


def _remove_links(images: Path) -> None:
    try:
        names = os.listdir(images)
    except FileNotFoundError:  # published meanwhile, without any
        return
    for name in names:
        if _LINK.fullmatch(name) and _is_link(images / name):
            (images / name).unlink()


def _make(pages: Sequence[Path] | None) -> None:
    for folder in pages or ():
        folder.mkdir(mode=0o700, exist_ok=True)


def _take(images: Path, pages: Sequence[Path] | None) -> None:
    """Turn what CRIU has written into pieces, if that is wanted."""
    if pages is None:
        return
    try:
        Pieces(pages).take(images)
    except OSError as error:
        raise CheckpointFailed(
            f"cannot cut CRIU's pages files into pieces: {error}", hint="is the disk full?"
        ) from error


def _check_sizes(layout: Layout, pages: Pieces) -> None:
    """Right after a dump a pages file of another size means that the dump is no good."""
    try:
        indexing.check_sizes(layout, pages)
    except NotIndexable as error:
        raise CheckpointFailed(f"the dump is not whole: {error}") from error


class _Unreadable(Exception):
    """There is memory that CRIU dumps and that we cannot read."""


def _scanned_now(run: Run) -> bool:
    """Whether its extents can be made from memory, without a look at a parent's."""
    return bool(run.flags & BULK) and not run.flags & COMPARED


def _sorted(extents: bytes) -> bytes:
    """An array of struct thaw_extent by source, then offset."""
    records = [extents[at : at + SIZE] for at in range(0, len(extents), SIZE)]
    # Little-endian: bytes 8 to 15 are the offset, 28 and 29 the source.
    records.sort(key=lambda record: (record[29], record[28], record[15:7:-1]))
    return b"".join(records)


class _Tasks:
    """Where the memory of a layout is: the processes, and files for what none of them maps."""

    def __init__(self, layout: Layout, init: int) -> None:
        self._layout = layout
        below = processes_below(init)
        missing = [pid for pid in layout.tasks if pid not in below]
        if missing:
            raise _Unreadable(f"process {missing[0]} of the images is not to be found")
        self.pids = [below[pid] for pid in layout.tasks]
        self._processes = list(below.values())
        self._places: dict[int, str] | None = None
        self._opened: dict[int, int] = {}  # pagemap → task

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._opened.values():
            os.close(~self.pids[number])

    def placed(self, run: Run) -> Run:
        """A run as it is saved: extents are wanted of what is not to be compared later."""
        flags = run.flags & ~BULK if run.flags & COMPARED else run.flags
        task = (
            self._of_shared(self._layout.sources[run.source].file)
            if run.task == NO_TASK
            else run.task
        )
        return run._replace(task=task, flags=flags)

    def _of_shared(self, file: int) -> int:
        """The number of a task that stands for the shared memory that pagemap `file` describes."""
        if file not in self._opened:
            name = self._layout.pagemaps[file].name
            found = _SHARED.fullmatch(name)
            if self._places is None:
                self._places = _shared_memory(self._processes)
            place = self._places.get(int(found[1])) if found else None
            if place is None:
                raise _Unreadable(f"the memory of {name} is not to be found")
            self.pids.append(~os.open(place, os.O_RDONLY | os.O_CLOEXEC))
            self._opened[file] = len(self.pids) - 1
        return self._opened[file]


def _shared_memory(pids: Iterable[int]) -> dict[int, str]:
    """The shared memory that processes have mapped or open: its shmid → a path that opens it.

    The shmid is the number of its inode in the kernel's own tmpfs (criu/proc_parse.c, memfd.c), of
    System V memory too.
    """
    probe = os.memfd_create("thaw")
    device = os.fstat(probe).st_dev
    os.close(probe)
    found: dict[int, str] = {}
    for pid in pids:
        for kind in ("map_files", "fd"):
            folder = f"/proc/{pid}/{kind}"
            try:
                paths = [f"{folder}/{name}" for name in os.listdir(folder)]
            except OSError:
                continue  # it has ended
            for path in paths:
                try:
                    info = os.stat(path)
                except OSError:
                    continue
                if info.st_dev == device:
                    found[info.st_ino & 0xFFFF_FFFF] = path
    return found
