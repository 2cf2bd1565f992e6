"""Workers that were lost over a snapshot which a pod had asked for: the next pod keeps its own.

    STORE/lost/NAME     which worker it was (any text that tells it from others), when, and why

What the driver could not give back to one worker, it cannot to an equal one: each new pod of a
deployment would be ended as soon as it is warm. `thaw checkpoint` is not kept from trying.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from shim.bundle import write_atomically
from shim.errors import FailedPrecondition
from shim.reference import check_name

FOLDER = "lost"
MOST = 100  # in a store: names come from pods, and the oldest go
_SHOWN = 500  # characters of an error


def note(store: Path, name: str, worker: str, error: str) -> None:
    """Remember that `worker` was lost over the snapshot `name`. Raises OSError."""
    folder = store / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    document = {"worker": worker, "time": when, "error": error[:_SHOWN]}
    write_atomically(str(folder / check_name(name)), json.dumps(document).encode())
    with suppress(FileNotFoundError):  # another was at it
        for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-MOST]:
            path.unlink()


def refuse(store: Path, name: str, worker: str) -> None:
    """Raise FailedPrecondition if such a worker was lost over that name."""
    try:
        found = json.loads((store / FOLDER / check_name(name)).read_bytes())
        same, when, error = found["worker"] == worker, found["time"], found["error"]
    except (OSError, ValueError, LookupError, TypeError):  # none, or none of ours
        return
    if same:
        raise FailedPrecondition(
            f"no snapshot {name} is made: a worker like this was lost over it on {when}: {error}",
            hint=f"`thaw rm {name}` lets the next one be tried; so does another image, GPU or "
            "driver, or another setting of gpu.*",
        )


def forget(store: Path, name: str) -> bool:
    """Let it be tried again; whether there was anything to forget. Raises OSError."""
    path = store / FOLDER / check_name(name)
    if not os.path.lexists(path):  # asked first, for a store that can only be read
        return False
    path.unlink(missing_ok=True)
    return True
