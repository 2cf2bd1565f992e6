"""A CUDA driver without a GPU: tests/fakes/libcuda*.c, built, and the world that it works on.

The library finds the folder by the environment variable THAW_FAKE_CUDA, so other processes that
have it share the world. Each `FakeCuda` has a library of its own: one that nobody has called
cuInit of yet.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fakes.settled import PATIENCE

VARIABLE = "THAW_FAKE_CUDA"
CALLS = (
    "cuInit",
    "cuDriverGetVersion",
    "cuCheckpointProcessGetState",
    "cuCheckpointProcessGetRestoreThreadId",
    "cuCheckpointProcessLock",
    "cuCheckpointProcessCheckpoint",
    "cuCheckpointProcessRestore",
    "cuCheckpointProcessUnlock",
)
STATES = ("running", "locked", "checkpointed", "failed", "checkpointing", "restoring")
STORAGE = "cuCheckpointOperationComplete"  # drivers of CUDA 13.4 and newer
PASS = -1  # an answer: the call does its work, as if it had none
_SOURCES = sorted(Path(__file__).parent.glob("libcuda*.c"))
_ENTRY = Path(__file__).with_name("libcuda_entry.c")
SHARED = ("-fPIC", "-fvisibility=hidden")  # of what becomes part of a library
_WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wstrict-prototypes", "-Werror")
_COMPILER = ("cc", "-std=gnu17", "-O1", "-g", "-pthread", *_WARNINGS)
_DEFINED = re.compile(r"^(?:CALL|COPY\w*|LAUNCH\w*)\((\w+)", re.MULTILINE)


@functools.cache
def names() -> frozenset[str]:
    """All functions that the library exports."""
    found = {name for path in _SOURCES for name in _DEFINED.findall(path.read_text())}
    return frozenset(name for name in found if name.startswith(("cu", "fake")))


def compiled(sources: Iterable[Path], folder: Path, *options: str) -> list[Path]:
    """Their objects in `folder`; all are compiled at the same time."""
    command = (*_COMPILER, *options, "-c", "-o")
    found = {folder / f"{source.stem}.o": source for source in sources}
    under_way = [subprocess.Popen([*command, *each]) for each in found.items()]
    assert [compiler.wait() for compiler in under_way] == [0] * len(found)
    return list(found)


@functools.cache
def _objects() -> dict[str, bytes]:
    """All but what depends on which calls the library has; compiled once, as that takes a while."""
    with tempfile.TemporaryDirectory() as folder:
        made = compiled((s for s in _SOURCES if s != _ENTRY), Path(folder), *SHARED)
        return {path.name: path.read_bytes() for path in made}


@functools.cache
def _built(without: frozenset[str]) -> bytes:
    """The library that lacks these calls."""
    assert without <= names(), without - names()
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libcuda.so.1"
        has = " ".join(f"X({name})" for name in sorted(names() - without) if name[:2] == "cu")
        objects = compiled([_ENTRY], Path(folder), *SHARED, f"-DENTRIES={has}")
        hidden = "".join(f"{name};" for name in sorted(without))
        script = Path(folder) / "script"
        script.write_text(f"{{ global: cu*; fake*; local: {hidden} *; }};\n")
        for name, content in _objects().items():
            objects.append(Path(folder) / name)
            objects[-1].write_bytes(content)
        # What is preloaded must not take the place of what cuGetProcAddress finds in here.
        shape = ("cc", "-shared", "-pthread", "-Wl,-Bsymbolic", "-Wl,-soname,libcuda.so.1")
        shown = f"-Wl,--version-script={script}"
        subprocess.run([*shape, shown, "-o", library, *objects], check=True)
        return library.read_bytes()


@dataclass(frozen=True)
class Call:
    """One call that the library was asked for, as its log has it."""

    name: str  # cuCheckpointProcessLock
    pid: int  # 0 if it is about no process
    detail: str  # milliseconds of a lock, "OLD>NEW,…" of a restore, or nothing
    begun: float  # seconds of the monotonic clock
    ended: float = 0.0
    result: int | None = None  # None: it is still under way

    @property
    def short(self) -> str:
        """What it is called among friends: Lock, GetState, cuInit."""
        return self.name.removeprefix("cuCheckpointProcess")

    def overlaps(self, other: Call) -> bool:
        """Whether there was a time when both were under way."""
        return self.begun < other.ended and other.begun < self.ended


def _whole_lines(path: Path) -> list[str]:
    """Those of a file to which others may just be writing: of the last one a part may be there."""
    return [line[:-1] for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"]


class FakeCuda:
    """A library in `folder`, and what it knows. `without`: calls that it lacks."""

    def __init__(
        self,
        folder: Path,
        *,
        version: int = 13000,
        without: tuple[str, ...] = (),
        storage: bool = False,
    ) -> None:
        self.folder = folder
        for name in ("processes", "answers", "delays", "holds"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "version").write_text(str(version))
        lacking = frozenset(without) | (frozenset() if storage else {STORAGE})
        self._path = folder / "libcuda.so.1"
        self._path.write_bytes(_built(lacking))

    @property
    def library(self) -> str:
        """What is to be opened."""
        return str(self._path)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment for the library to find this world."""
        return {VARIABLE: str(self.folder)}

    def add(self, pid: int, state: str = "running") -> None:
        """From now on the driver knows this process; also: it is in that state."""
        new = self.folder / f"{pid}.new"
        new.write_text(f"{state:16}\n")
        os.replace(new, self.folder / "processes" / str(pid))

    def remove(self, pid: int) -> None:
        """The process is gone."""
        (self.folder / "processes" / str(pid)).unlink()

    def state(self, pid: int) -> str:
        """The state that the process is in; "" if the driver does not know it."""
        try:
            return (self.folder / "processes" / str(pid)).read_text().strip()
        except FileNotFoundError:
            number = ctypes.CDLL(self.library).fakeState(pid)
            return "" if number < 0 else STATES[number]

    def answer(
        self, call: str, *results: int, pid: int | None = None, left: str = "", always: bool = False
    ) -> None:
        """What `call` answers, one result after the other or always the last one.

        It does nothing then, whatever it answers, but leave the process in the state `left`. For
        `pid` only, if there is one: such answers go first. That is who the call is about, or, if it
        is about the calling process, who calls. PASS among the results: the call does its work.
        """
        often = ["once"] * len(results)
        if always:
            often[-1] = "always"
        lines = (f"{result} {times} {left}" for result, times in zip(results, often, strict=True))
        with open(self._file("answers", call, pid), "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # who takes a line out writes the others anew
            file.writelines(f"{line.rstrip()}\n" for line in lines)

    def delay(self, call: str, seconds: float, pid: int | None = None) -> None:
        """How long `call` takes, from now on."""
        self._file("delays", call, pid).write_text(str(seconds))

    @contextmanager
    def held(self, call: str, pid: int | None = None) -> Iterator[None]:
        """A block in which `call` does not come to its end, unless its process does.

        `pid`: only in that process; for calls that are about the caller itself.
        """
        held = self._file("holds", call, pid)
        held.touch()
        try:
            yield
        finally:
            held.unlink()

    @contextmanager
    def together(self, count: int, *calls: str) -> Iterator[None]:
        """A block in which each of `calls` ends only once `count` of them are under way at a time.

        They are made in this order. If so many do not come, they end all the same, one by one.
        """
        holds = [self._file("holds", call, None) for call in calls]
        for held in holds:
            held.touch()
        over = threading.Event()

        def release() -> None:
            for call, held in zip(calls, holds, strict=True):
                ends = time.monotonic() + PATIENCE
                while self._how_many(call) < count and time.monotonic() < ends:
                    if over.wait(0.005):
                        break
                held.unlink()

        releasing = threading.Thread(target=release)
        releasing.start()
        try:
            yield
        finally:
            over.set()
            releasing.join()

    @property
    def calls(self) -> list[Call]:
        """All calls so far, in the order in which they began."""
        made: list[Call] = []
        open_calls: dict[str, int] = {}  # by thread
        try:
            lines = _whole_lines(self.folder / "log")
        except FileNotFoundError:
            return []
        for line in lines:
            what, thread, time, name, pid, result, detail = line.split(" ", 6)
            seconds = int(time) / 1e9
            if what == "begin":
                open_calls[thread] = len(made)
                made.append(Call(name, int(pid), detail, seconds))
            else:
                at = open_calls.pop(thread)
                begun = made[at]
                made[at] = Call(
                    begun.name, begun.pid, begun.detail, begun.begun, seconds, int(result)
                )
        return made

    def asked(self, *pids: int) -> list[str]:
        """`Lock 7` and so on, in order, but for those that change nothing; of `pids`, or all."""
        return [
            f"{call.short} {call.pid}"
            for call in self.calls
            if call.pid and "Get" not in call.name and (not pids or call.pid in pids)
        ]

    def under_way(self, call: str, pid: int | None = None) -> bool:
        """Whether somebody waits for such a call."""
        return self._how_many(call, pid) > 0

    def trace(self) -> None:
        """From now on `traced` has the calls that are about the calling process itself."""
        (self.folder / "calls").write_text("")

    @property
    def traced(self) -> list[tuple[str, int]]:
        """Their names and who made them, in order."""
        lines = (line.split() for line in _whole_lines(self.folder / "calls"))
        return [(name, int(pid)) for name, pid in lines]

    def count(self, call: str) -> int:
        """How often it was made since `trace`, by whomever."""
        return [name for name, _ in self.traced].count(call)

    def forget(self) -> None:
        """Start the log anew."""
        (self.folder / "log").unlink(missing_ok=True)

    def reset(self) -> None:
        """Forget all but the processes: calls, answers, delays."""
        self.forget()
        for folder in ("answers", "delays", "holds"):
            for path in (self.folder / folder).iterdir():
                path.unlink()

    def _how_many(self, call: str, pid: int | None = None) -> int:
        """So many calls of that name are under way."""
        return sum(
            made.result is None and made.short == call and pid in (None, made.pid)
            for made in self.calls
        )

    def _file(self, folder: str, call: str, pid: int | None) -> Path:
        if call not in names():
            call = f"cuCheckpointProcess{call}"
        assert call in names(), f"no such call: {call}"
        name = call if pid is None else f"{call}.{pid}"
        return self.folder / folder / name
