"""A trial: a snapshot that is not published yet is restored once, beside its original.

spec.py says what its container is, world.py gives that a world of its own, engine.py does it.
"""

from __future__ import annotations

import os

REQUEST = "request"  # in the folder: what an engine needs to know to remove what is left of a trial


def folder_of(folder: str) -> str:
    """The folder of a trial, beside that of its original under the state folder.

    Not in it, so that a container that goes meanwhile takes nothing away from under its trial; and
    hidden, so that nobody takes it for a container.
    """
    return f"{os.path.dirname(folder)}/.verify-{os.path.basename(folder)}"
