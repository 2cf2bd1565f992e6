"""Reading images of which only small ones can be right, so that a forged one costs little.

images.py reads them; here is only what is refused before, as Damaged.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from shim.errors import Damaged
from shim.proto.wire import Message, WireError
from shim.snapshot import images as criu

_M = TypeVar("_M", bound=Message)


def check_size(images: Path, name: str, most: int) -> None:
    """Raise Damaged if an image has more than `most` bytes."""
    try:
        size = os.lstat(images / name).st_size
    except OSError as error:
        raise Damaged(f"cannot read {name}: {error.strerror}") from error
    if size > most:
        raise Damaged(f"{name} has {size} bytes, more than {most}")


def several(images: Path, name: str, magic: int, most: int) -> list[bytes]:
    """The messages of an image of at most `most` bytes. Raises NotIndexable too."""
    check_size(images, name, most)
    return list(criu.records(criu.read(images, name, magic), 8, name))


def only(images: Path, name: str, magic: int, most: int) -> bytes:
    """The one message of an image."""
    check_size(images, name, most)
    records = criu.records(criu.read(images, name, magic), 8, name)
    record = next(records, None)
    if record is None or next(records, None) is not None:
        raise Damaged(f"{name} has not one message")
    return record


def decoded(kind: type[_M], record: bytes, name: str) -> _M:
    """The message. Raises Damaged."""
    try:
        return kind.decode(record)
    except WireError as error:
        raise Damaged(f"{name}: {error.message}") from error
