"""Taking GPU memory of processes out of the driver's way while they are dumped, and giving it back.

The library in a process holds its GPU work, hands its memory over as descriptors and lets go of it.
The memory lives on, on its GPU, because we have taken part in it. Then the driver is asked for the
little that is left (gpu/suspension.py), and while that and the dump go on the memory is copied into
the snapshot: nobody can write to it any more. Nothing is copied back: afterwards the same memory is
mapped where it was.

    with Movement(…) as movement:       hold, export, empty: all processes at once
        with Suspension(…):             the driver's part
            movement.save(folders)      copies begin
            …                           CRIU
        movement.give_back()            waits until all was read; give, open
    movement.finish()                   waits until all is written; any time later

What was done to a process is asked of its library when it has to be undone. One that has not got
its memory back cannot go on: GpuLost, as with the driver. Should we be killed over it, the next
engine finds the memory with a process that has hold of it, too: see keeper.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from shim.errors import CheckpointFailed, GpuFailed, GpuLost, ThawError, Unfit
from shim.gpu.memory.device import BUDGET, Memory, Region
from shim.gpu.memory.keeper import Keeper
from shim.gpu.memory.library import Library, Piece, close_all, let_go_on
from shim.gpu.memory.saving import Saved, Saving
from shim.gpu.memory.wire import About, State
from shim.gpu.nvml import uuid_text
from shim.gpu.processes import all_of, each, is_stopped
from shim.gpu.watch import Watch
from shim.snapshot.cuda import GpuRegion
from shim.timeline import Timeline

_ENDING = 10.0  # seconds for a process that is being killed to end
_CANNOT = "the worker is lost, its GPU memory cannot be given back"
_IMPORTED = (
    "the driver cannot restore a process that has another's memory mapped: see the README, "
    '"GPU memory"'
)
_AGAIN = "try again: what it has now is the driver's to save"


@dataclass(frozen=True)
class Found:
    """What a process has, as its library says before anything is done. `reason`: none is moved."""

    library: Library | None
    about: About | None
    reason: str = ""

    @property
    def left(self) -> dict[str, int]:
        """Bytes that the driver has of it, as far as the library knows of them."""
        return self.about.left if self.about is not None else {}


def ask(pids: Iterable[int], reason_of: Callable[[int], str]) -> dict[int, Found]:
    """What each process has. Their libraries are the caller's to close.

    Raises Unfit if there is a process that could never be restored, GpuFailed if a library does not
    answer, and GpuLost if one has lost its memory.
    """
    found: dict[int, Found] = {}
    try:
        for pid in pids:
            found[pid] = _asked(pid, reason_of)
        return found
    except BaseException:
        close(found.values())
        raise


def refuse_given(found: Mapping[int, Found], because: str) -> None:
    """Raise Unfit if there is a process that cannot be left to the driver, as it shall be.

    What was given back to a process is, for the driver, memory of another one. It saves that, and
    then refuses to restore it, even to the worker that it was just taken from.
    """
    for pid, one in found.items():
        if one.about is not None and one.about.given:
            raise Unfit(
                f"process {pid} has GPU memory that was given back to it, after a snapshot or in a "
                f"restore: the driver alone, which shall save it ({because}), could not restore it",
                hint="let the library move it again, or restart the container",
            )


def close(found: Iterable[Found]) -> None:
    """Give the descriptors of their libraries back."""
    for one in found:
        if one.library is not None:
            one.library.close()


def _asked(pid: int, reason_of: Callable[[int], str]) -> Found:
    library = Library.of(pid)
    if library is None:
        return Found(None, None, reason_of(pid))
    try:
        if is_stopped(pid):  # it is a thread of its own that answers
            raise GpuFailed(f"process {pid} is stopped", hint="let it go on: kill -CONT")
        about = library.hello()
        let_go_on(library)  # what an engine that died has left
        if about.left.get("imported"):  # of how much, nobody need know
            raise Unfit(f"process {pid} has GPU memory of another process mapped", hint=_IMPORTED)
    except BaseException:
        library.close()
        raise
    return Found(library, about)


@dataclass
class _Taken:
    """One process's memory, in the order of ids."""

    about: About
    pieces: list[Piece]
    regions: list[Region]


class Movement:
    """A block in which the GPU memory of processes is with us: `libraries`, by pid, have some.

    Leaving it gives everything back, if `give_back` has not. `seconds`: within which a process's
    GPU work must come to rest. `most`: bytes that all GPUs have. `keeper` has all of it, too, until
    it is given back. `gpus`: UUIDs of those that the memory may be on; None: any. Raises GpuFailed,
    with everything given back, and GpuLost if that is not possible.
    """

    def __init__(
        self,
        memory: Memory,
        libraries: Mapping[int, tuple[Library, About]],
        timeline: Timeline,
        seconds: float,
        most: int,
        keeper: Keeper | None = None,
        gpus: Collection[str] | None = None,
    ) -> None:
        self._memory = memory
        self._libraries = libraries
        self._timeline = timeline
        self._seconds = seconds
        self._most = most
        self._keeper = keeper
        self._gpus = gpus
        self._taken: dict[int, _Taken] = {}
        self._saving: Saving | None = None
        self._watch = Watch(())
        self._out = False  # of their hands

    def __enter__(self) -> Self:
        self._watch = Watch(self._libraries)
        try:
            self._out = True
            with self._timeline.span("hold"):
                self._do(lambda pid: self._library(pid).hold(self._seconds))
            with self._timeline.span("export"):
                self._do(self._take)
                self._keep()
            with self._timeline.span("empty"):
                self._do(lambda pid: self._library(pid).empty())
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._leave(error)

    def regions(self, pid: int) -> list[GpuRegion]:
        """What was taken from a process, as the snapshot lists it."""
        taken = self._taken.get(pid)
        if taken is None:
            return []
        return [
            GpuRegion(
                piece.memory.id,
                piece.memory.size,
                piece.memory.device,
                uuid_text(taken.about.uuids[piece.memory.device]),
                piece.memory.rdma,
            )
            for piece in taken.pieces
        ]

    def save(self, folders: Sequence[Path], order: Sequence[int], budget: int = BUDGET) -> None:
        """Begin to copy everything into pieces in `folders`; the processes in that order.

        `budget`: bytes that may be read and not yet written when they go on.
        """
        if self._saving is None:
            regions = [region for pid in order for region in self._of(pid)]
            self._saving = Saving(regions, folders, self._timeline, budget)

    def give_back(self) -> None:
        """Once all was read: give everything back and let the processes go on.

        Raises GpuLost if that is not possible, and CheckpointFailed, when it is done, if something
        could not be read. Those that have ended are passed over. Again is fine.
        """
        if not self._out:
            return
        failure: CheckpointFailed | None = None
        try:
            if self._saving is not None:
                self._saving.wait_read()
        except CheckpointFailed as error:
            failure = error
        self._out = False
        with self._timeline.span("give"):
            failures = self._returned()
        if self._keeper is not None:
            self._keeper.done()  # it can help nobody any more
        if failures:
            told = all_of(failures)
            raise GpuLost(f"{_CANNOT}: {told.message}", hint=told.hint) from failure
        if failure is not None:
            raise failure

    def finish(self) -> Saved:
        """Wait until all is written, and let go of the memory. Raises CheckpointFailed."""
        if self._saving is None:
            return Saved(b"", 0, 0)
        return self._saving.finish()

    def _of(self, pid: int) -> list[Region]:
        return self._taken[pid].regions if pid in self._taken else []

    def _library(self, pid: int) -> Library:
        return self._libraries[pid][0]

    def _take(self, pid: int) -> None:
        """Have its memory exported, and take part in all of it.

        It was asked before it was held, and has gone on. One that has nothing left to be taken must
        not be dumped as one that has: nobody would open it after a restore.
        """
        library, about = self._libraries[pid]
        if library.hello().left.get("imported"):
            raise GpuFailed(f"process {pid} has mapped GPU memory of another", hint=_IMPORTED)
        pieces = library.export(self._most, len(about.uuids))
        taken = self._taken[pid] = _Taken(about, pieces, [])
        if not pieces:
            raise GpuFailed(f"process {pid} has just freed its GPU memory", hint=_AGAIN)
        for piece in pieces:
            uuid = about.uuids[piece.memory.device]
            if self._gpus is not None and uuid_text(uuid) not in self._gpus:
                raise GpuFailed(
                    f"process {pid} has memory on {uuid_text(uuid)}, which is not its container's"
                )
            try:
                taken.regions.append(self._memory.take(uuid, piece.memory.size, piece.fd))
            except ValueError as error:
                raise GpuFailed(f"process {pid}: piece {piece.memory.id}: {error}") from error

    def _keep(self) -> None:
        if self._keeper is not None:
            self._keeper.keep({pid: taken.pieces for pid, taken in self._taken.items()})

    def _do(self, act: Callable[[int], None]) -> None:
        failures = each(act, list(self._libraries))
        if failures:
            self._refuse_ended()
            raise all_of(failures)

    def _refuse_ended(self) -> None:
        ended = self._watch.ended()
        if ended:
            words = ", ".join(map(str, sorted(ended)))
            raise GpuFailed(
                f"process {words} ended before the snapshot was made",
                hint="has the worker been killed? There is none to be restored",
            )

    def _returned(self) -> dict[int, GpuFailed]:
        """All get what is theirs before the first goes on; answers who could not."""
        there = [pid for pid in self._libraries if pid not in self._watch.ended()]
        failures = each(self._give, there)
        failures |= each(self._open, [pid for pid in there if pid not in failures])
        self._watch.wait(failures, _ENDING if failures else 0.0)
        ended = self._watch.ended()
        return {pid: error for pid, error in sorted(failures.items()) if pid not in ended}

    def _give(self, pid: int) -> None:
        library = self._library(pid)
        library.hello()  # what it has done it knows best: the last answer may have been missed
        if library.state is State.EMPTIED:
            pieces = self._taken[pid].pieces if pid in self._taken else []
            try:
                library.give(pieces)
            except GpuFailed:
                library.give_missing(pieces)

    def _open(self, pid: int) -> None:
        if self._library(pid).state is not State.RUNNING:
            self._library(pid).open()

    def _leave(self, error: BaseException | None) -> None:
        try:
            if self._saving is not None and error is not None:
                self._saving.cancel()
            if isinstance(error, GpuLost):  # it is ended, and could take nothing back any more
                self._out = False
            with suppress(CheckpointFailed):  # of which `error` is the consequence, or the reason
                self.give_back()
        except GpuLost as lost:
            if isinstance(error, ThawError):
                both = f"{error.message}\n{lost.message}"
                raise GpuLost(both, hint=lost.hint) from error
            raise
        finally:
            self._release()

    def _release(self) -> None:
        """Let go of everything."""
        if self._saving is not None:
            self._saving.close()
        for taken in self._taken.values():
            close_all(taken.pieces)
            for region in taken.regions:
                with suppress(GpuFailed):  # there is nothing to be done about it
                    region.close()
        self._taken = {}
        self._watch.close()
