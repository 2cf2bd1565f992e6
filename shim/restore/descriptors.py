"""Open files in CRIU's files.img that no kernel has written there.

CRIU opens every file by its path inside the container, with the flags of the image, as root.
"""

from __future__ import annotations

import os
from pathlib import Path

from shim.errors import Damaged
from shim.proto import criu_pb as pb
from shim.restore.sockets import LARGEST, NAME
from shim.snapshot.bounded import decoded, several
from shim.snapshot.config import DAMAGED
from shim.snapshot.images import FILES, NotIndexable

# The kernel keeps neither in a file's flags (do_dentry_open, fs/open.c).
_ONCE = os.O_CREAT | os.O_EXCL | os.O_TRUNC


def check_flags(images: Path) -> None:
    """Raise Damaged if CRIU would make or truncate a file when it opens it."""
    try:
        for record in several(images, NAME, FILES, LARGEST):
            file = decoded(pb.File, record, NAME).reg
            if file is not None and file.flags & _ONCE:
                name = file.name[:200].decode(errors="replace")
                raise Damaged(f"opening {name!a} would make or truncate it")
    except NotIndexable as error:
        raise Damaged(f"{images}: {error}", hint=DAMAGED) from error
    except Damaged as error:
        raise Damaged(f"{images / NAME}: {error.message}", hint=DAMAGED) from error
