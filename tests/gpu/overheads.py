"""overhead.py, run with the GPU memory library and without it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any

from bed.lane import Installation
from gpu.machine import Machine

_SECONDS = 240
_WHERE = "from shim.gpu.preload import installed; print(installed())"


def measured(machine: Machine, installation: Installation, device: str) -> dict[str, Any]:
    """What it tells, by `driver` and `library`."""
    given = {"driver": {}, "library": {"LD_PRELOAD": preloaded(installation)}}
    return {name: _told(machine, device, more) for name, more in given.items()}


def preloaded(installation: Installation) -> str:
    """What goes into LD_PRELOAD: the library of that installation."""
    return _output([str(installation.bin / "python"), "-c", _WHERE], dict(os.environ))


def _told(machine: Machine, device: str, more: Mapping[str, str]) -> dict[str, float]:
    said = _output([machine.python, "-m", "gpu.overhead", device], machine.beside(more))
    told: dict[str, float] = json.loads(said.splitlines()[-1])
    return told


def _output(command: list[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",  # or the checkout's shim would be taken for the installed one
        env=environment,
        timeout=_SECONDS,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr[-400:]}")
    return done.stdout.strip()
