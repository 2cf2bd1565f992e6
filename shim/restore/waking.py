"""The first thing that a restore's engine does: have the driver look at the GPUs.

cuInit takes 0.23 seconds on an H100 and wants nothing of us but a thread, and importing what a
restore needs takes nearly as long. Both go on at once here: all that is looked at is which snapshot
was named and whether it says that there are processes with GPU state. What is wrong with it, or
with the driver, the restore itself will find and say.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from shim import names
from shim.config import Config
from shim.reference import parse

_LARGEST = 4 << 20  # bytes of a document that is read only to save time


def wake(request: Mapping[str, Any]) -> None:
    """Have the driver begun in a thread if the snapshot that is named in `request` needs it."""
    with suppress(Exception):  # it only saves time
        config = Config(request["config"])
        path = names.find(config.several("snapshots"), parse(request["name"]))
        if path is not None and has_gpu_state(f"{path}/config.json"):
            library = config.text("gpu.library")
            threading.Thread(target=_begin, args=(library,), daemon=True).start()


def has_gpu_state(document: str) -> bool:
    """Whether a snapshot's document lists processes with GPU state. Raises OSError, ValueError."""
    with open(os.open(document, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        found = json.loads(file.read(_LARGEST))
    return bool(found["gpu"]["processes"])


def _begin(library: str) -> None:
    with suppress(Exception):  # whoever needs it asks again
        from shim.gpu.driver import Driver

        Driver.open(library).init()
