"""Programs that use a GPU as they are told: tests/fakes/gpu_program.c on the fake driver.

    with Program(cuda, "linked", preload=library) as program:
        assert program.ask("alloc 4M").startswith("1 ")

They are built once, each in the three ways in which programs find CUDA's functions.
"""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from fakes.cuda import VARIABLE, FakeCuda, compiled

WAYS = {"linked": "LINKED", "dlsym": "BY_DLSYM", "entry": "BY_ENTRY"}
WORLD = (
    "THAW_FAKE_WORKER"  # the folder, for a process that is not the driver's caller but its worker
)
_SOURCES = sorted(Path(__file__).parent.glob("gpu_program*.c"))


@functools.cache
def built(way: str, *options: str) -> bytes:
    """The program that finds the functions in one of WAYS.

    `options` are more for the compiler, sources among them.
    """
    with tempfile.TemporaryDirectory() as folder:
        program, needed = Path(folder) / "gpu_program", Path(folder) / "needed"
        needed.mkdir()
        flags = [option for option in options if not option.endswith(".c")]
        sources = [*_SOURCES, *(Path(option) for option in options if option.endswith(".c"))]
        objects = compiled(sources, Path(folder), f"-D{WAYS[way]}", *flags)
        if way == "linked":
            objects.append(Path(FakeCuda(needed).library))
        subprocess.run(["cc", "-pthread", *flags, "-o", program, *objects], check=True)
        return program.read_bytes()


def build(folder: Path, way: str, *options: str) -> Path:
    """The program as `folder`/gpu_program-WAY."""
    path = folder / f"gpu_program-{way}"
    if not path.exists():
        path.write_bytes(built(way, *options))
        path.chmod(0o755)
    return path


def environment(cuda: FakeCuda, gpus: str) -> dict[str, str]:
    """The environment of a program that finds the driver there, and sees GPUs of these numbers."""
    env = {name: text for name, text in os.environ.items() if name != VARIABLE}
    env |= {"LD_LIBRARY_PATH": str(cuda.folder), WORLD: str(cuda.folder)}
    return env | {"THAW_FAKE_GPUS": gpus}


class Refused(Exception):
    """What CUDA answered a program instead of doing what it asked for."""

    def __init__(self, result: int, call: str) -> None:
        super().__init__(f"{call}: {result}")
        self.result = result  # a CUresult; -1 for the program's own
        self.call = call  # without _v2 and the like


class Program:
    """One such process; it is ended with the block.

    It finds the fake driver by LD_LIBRARY_PATH, and its answers in the folder of `cuda`; its state
    lies in its own memory, as a worker's. `gpus`: the numbers of those that it sees. `memory`:
    bytes that each has for it. `options` are more for the compiler; `more` goes into the
    environment.
    """

    def __init__(
        self,
        cuda: FakeCuda,
        way: str = "entry",
        *,
        preload: Path | str | None = None,
        gpus: str = "0",
        memory: int | None = None,
        options: tuple[str, ...] = (),
        **more: str,
    ) -> None:
        env = environment(cuda, gpus) | more
        if memory is not None:
            env["THAW_FAKE_MEMORY"] = str(memory)
        if preload is not None:
            env["LD_PRELOAD"] = str(preload)
        pipe = subprocess.PIPE
        program = build(cuda.folder, way, *options)
        self.process = subprocess.Popen(
            [program], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env
        )
        self._line("ready")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, command: str) -> None:
        """Say a command without waiting for its answer: see `answer`."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """What follows "ok"; Refused if it is an error."""
        words = self._line("").split()
        if words[:1] == ["ok"]:
            return " ".join(words[1:])
        raise Refused(int(words[1]), words[2])

    def ask(self, command: str) -> str:
        """Say a command and wait for its answer."""
        self.tell(command)
        return self.answer()

    def number(self, command: str) -> int:
        """The same for commands that make memory: its number."""
        return int(self.ask(command).split()[0])

    def address(self, command: str) -> int:
        """The same: its address."""
        return int(self.ask(command).split()[1], 16)

    def filled(self, *commands: str) -> None:
        """Make the first memory of all and fill it, each with numbers of its own."""
        for number, command in enumerate(commands, 1):
            assert self.number(command) == number
            self.ask(f"fill {number} {number}")

    def end(self) -> tuple[int, str]:
        """Let it come to its end: its exit status, and what it said on stderr."""
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said

    def _line(self, wanted: str) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line or not line.startswith(wanted):
            status, said = self.end()
            raise RuntimeError(f"the program ended with {status} after {line!r}: {said}")
        return line


def sums(program: Program) -> list[str]:
    """Of what is in its first three pieces of memory."""
    return [program.ask(f"sum {number}") for number in (1, 2, 3)]
