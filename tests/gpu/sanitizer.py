"""NVIDIA's compute-sanitizer over a program whose GPU memory is taken away and given back.

Its tools see every access of a kernel, and every call of the driver's that fails: an address that
is not what it was would show in a sum or as an access to what nobody has. Where a tool complains,
the same program is run without the library: what it says there too is not ours.

One call that fails is a question, and counted apart: whether the driver makes a descriptor of
memory that was given back once. 580.159.04 does not, and the library copies it (native/gpu/
rehoming.c).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from bed.lane import Installation
from gpu.machine import Machine
from gpu.overheads import preloaded
from gpu.subject import TESTS

TIMES = 3  # away and back, between two answers
ANSWERS = 3
_QUESTION = re.compile(
    r"^========= Program hit CUDA_ERROR_INVALID_VALUE .* call to cuMemExportToShareableHandle\.",
    re.MULTILINE,
)
_PRINTED = 1_000_000  # errors: all
_FIRST = 3000  # characters
_SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error")
_ENDING = 60  # seconds
_AWAY = 300
_EXPANDABLE = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


class Look(NamedTuple):
    """One tool, and what the program is told by its environment."""

    tool: str
    environment: Mapping[str, str]


class Found(NamedTuple):
    """What one tool has found in one run."""

    errors: int
    questions: int
    moved: int  # bytes of GPU memory
    first: str  # the beginning of all that it says but questions


LOOKS = {
    "memcheck": Look("memcheck", {}),
    "memcheck, expandable segments": Look("memcheck", _EXPANDABLE),
    "initcheck": Look("initcheck", {}),
}


def found_by(
    program: str, machine: Machine, installation: Installation, device: str
) -> dict[str, dict[str, Any]]:
    """What each tool found, by the names of `LOOKS`; `program`: compute-sanitizer.

    Raises RuntimeError if contents change, or if there is more to find with the library.
    """
    path = shutil.which(program)
    if path is None:
        raise RuntimeError(f"no {program} here: it comes with the CUDA toolkit (--sanitizer PATH)")
    library = {"LD_PRELOAD": preloaded(installation)}
    told = {}
    for name, look in LOOKS.items():
        began = time.monotonic()
        run = _Run(path, look.tool, machine, device)
        ours = run.looked({**look.environment, **library}, installation)
        plain = run.looked(look.environment, None).errors if ours.errors else 0
        if ours.errors > plain:
            raise RuntimeError(
                f"{name}: {ours.errors} errors, {plain} without the library: {ours.first}"
            )
        seconds = round(time.monotonic() - began, 1)
        told[name] = {
            "errors": ours.errors,
            "without": plain,
            "questions": ours.questions,
            "moved": ours.moved,
            "seconds": seconds,
        }
    return told


class _Run:
    """The program under one tool."""

    def __init__(self, program: str, tool: str, machine: Machine, device: str) -> None:
        self._program = program
        self._tool = tool
        self._machine = machine
        self._device = device

    def looked(self, environment: Mapping[str, str], installation: Installation | None) -> Found:
        """What the tool has found; GPU memory is moved by `installation`, if any."""
        moved = 0
        with tempfile.TemporaryDirectory(prefix="thaw-sanitizer-") as folder:
            log = Path(folder, "log")
            with self._started(environment, log) as process:
                before = _answer(process)
                for _ in range(ANSWERS):
                    if installation is not None:
                        moved += self._away(installation, before["pid"])
                    after = _answer(process)
                    if {**after, "answers": 0} != {**before, "answers": 0}:
                        raise RuntimeError(f"{self._tool}: other contents than before")
            text = log.read_text() if log.exists() else ""
            summary = _SUMMARY.search(text)
            if summary is None:
                raise RuntimeError(f"{self._tool}: {self._program} has found nothing to look at")
            rest, questions = _QUESTION.subn("", text)
            return Found(int(summary[1]) - questions, questions, moved, rest.strip("=\n ")[:_FIRST])

    @contextmanager
    def _started(
        self, environment: Mapping[str, str], log: Path
    ) -> Iterator[subprocess.Popen[str]]:
        options = ["--tool", self._tool, "--print-limit", str(_PRINTED), "--log-file", str(log)]
        words = [self._machine.python, "-m", "gpu.sanitized", self._device]
        process = subprocess.Popen(
            [self._program, *options, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._machine.beside(environment),
            cwd="/",
        )
        with process:
            try:
                yield process
                assert process.stdin is not None
                process.stdin.close()
                status = process.wait(_ENDING)
                if status:
                    raise RuntimeError(f"{self._tool}: exit {status}")
            finally:
                process.kill()

    def _away(self, installation: Installation, pid: int) -> int:
        command = [str(installation.bin / "python"), "-m", "gpu.away", str(pid)]
        done = subprocess.run(
            [*command, str(self._machine.library), str(TIMES)],
            capture_output=True,
            text=True,
            check=False,
            cwd=TESTS,  # or the checkout's shim would be taken for the installed one
            env={**os.environ, **self._machine.libraries},
            timeout=_AWAY,
        )
        if done.returncode:
            raise RuntimeError(f"{self._tool}: {done.stderr[-400:]}")
        return sum(map(int, done.stdout.split()))


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What the program says next; others may write lines of their own."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):  # its status says more
        os.write(process.stdin.fileno(), b"\n")
    for line in process.stdout:
        if line.startswith("{"):
            told: dict[str, Any] = json.loads(line)
            return told
    raise RuntimeError(f"the program has ended: exit {process.wait(_ENDING)}")
