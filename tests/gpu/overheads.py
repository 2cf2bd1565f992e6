"""overhead.py, run with the GPU memory library and without it, twice each.

A machine's speed drifts by a fifth from one process to the next, also in what both do alike: so the
one that goes first goes last, too, and of each figure the better one counts.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any

from bed.lane import Installation
from gpu.machine import Machine

_SECONDS = 240
_RATES = {"multiply", "to", "from", "within"}  # the more the better; of all else, the less
_WHERE = "from shim.gpu.preload import installed; print(installed())"


def measured(machine: Machine, installation: Installation, device: str) -> dict[str, Any]:
    """What it tells, by `driver` and `library`: the better of two runs of each."""
    given = {"driver": {}, "library": {"LD_PRELOAD": preloaded(installation)}}
    found: dict[str, dict[str, float]] = {}
    for name in ("driver", "library", "library", "driver"):
        told = _told(machine, device, given[name])
        found[name] = _better(found[name], told) if name in found else told
    return found


def _better(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {
        name: (max if name in _RATES else min)(value, other[name]) for name, value in one.items()
    }


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
