"""Where the names of a store lead: the least that the pod's shim must know of it.

    STORE/names/NAME      the id of the snapshot that NAME stands for
    STORE/names/QUOTED    the same for REGISTRY/REPOSITORY:TAG, quoted
    STORE/digests/HEX     the id of the snapshot whose manifest has that SHA-256
    STORE/snapshots/ID    a snapshot

A tag is a file that is replaced by one rename. All the rest of a store is in snapshot/store.py.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from shim.reference import Reference

NAMES = "names"
DIGESTS = "digests"
SNAPSHOTS = "snapshots"
KEY = "key"  # of derived names: snapshot/derived.py
ID_LENGTH = 16

_HEX = frozenset("0123456789abcdef")


def find(stores: Iterable[str], reference: Reference) -> str | None:
    """The folder of the snapshot, in the first store that has it; `auto` is nowhere."""
    for store in stores:
        found = id_of(store, reference)
        if found is not None:
            path = f"{store}/{SNAPSHOTS}/{found}"
            if os.path.lexists(path):
                return path
    return None


def id_of(store: str, reference: Reference) -> str | None:
    """The id that a reference leads to in one store. A digest counts, whatever the name says."""
    if reference.auto:
        return None
    if reference.digest:
        return read_id(f"{store}/{DIGESTS}/{reference.hex}")
    return read_id(f"{store}/{NAMES}/{reference.file_name}")


def unquoted(file_name: str) -> str:
    """The reference that a file in `names` is for: `Reference.file_name` undone."""
    first, *rest = file_name.split("%")
    return first + "".join(_character(part) for part in rest)


def _character(part: str) -> str:
    digits = part[:2]
    return chr(int(digits, 16)) + part[2:] if _is_hex(digits, 2) else f"%{part}"


def read_id(path: str) -> str | None:
    """The id in a file; None if there is no such file, or something else in it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(fd, 64)
    except OSError:
        return None
    finally:
        os.close(fd)
    try:
        found = text.decode("ascii").strip()
    except UnicodeDecodeError:
        return None
    return found if is_id(found) else None


def is_id(text: str) -> bool:
    """Whether it can be the id of a snapshot."""
    return _is_hex(text, ID_LENGTH)


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and _HEX.issuperset(text)
