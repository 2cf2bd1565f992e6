"""The tar of an image's layer, laid as an overlay's upper directory.

In a layer `.wh.NAME` says that NAME is gone, and `.wh..wh..opq` that nothing of a folder below
shines through: https://github.com/opencontainers/image-spec/blob/v1.1.0/layer.md#whiteouts. An
overlay has a device 0:0 and an extended attribute for these.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from shim.errors import Unfit
from shim.snapshot.laying import lay
from shim.snapshot.parts import Parts
from shim.snapshot.tar import Kind, Member, members
from shim.snapshot.tree import open_directory

_GONE = b".wh."
_OPAQUE = b".wh..wh..opq"
_IS_OPAQUE = ((b"trusted.overlay.opaque", b"y"),)


def unpack_layer(path: Path, upper: Path) -> None:
    """Lay the layer in the file `path` into the folder `upper`. Raises Unfit, Damaged, OSError."""
    target = open_directory(upper)
    try:
        with Parts(path, whole=True) as parts:
            found = as_overlay(members(parts, str(path)), str(path))
            lay(str(path), parts, found, target, whiteouts=True)
    finally:
        os.close(target)


def as_overlay(found: Iterable[Member], where: str) -> list[Member]:
    """The members as an overlay wants them."""
    made: dict[bytes, Member] = {}
    for member in found:
        folder, slash, name = member.path.rpartition(b"/")
        if name == _OPAQUE:
            above = made.get(folder)
            if above is None or above.kind is not Kind.FOLDER:
                raise Unfit(f"{where}: {member.path!r} is in no folder", hint="it is no layer")
            made[folder] = replace(above, xattrs=above.xattrs + _IS_OPAQUE)
            continue
        if name.startswith(_GONE):
            if name[len(_GONE) :] in (b"", b".", b".."):
                raise Unfit(f"{where}: {member.path!r} hides no name", hint="it is no layer")
            path = folder + slash + name[len(_GONE) :]
            member = replace(  # noqa: PLW2901 - it is the same one, said otherwise
                member, path=path, kind=Kind.CHARACTERS, mode=0, size=0, regions=None, device=(0, 0)
            )
        if member.path in made:
            raise Unfit(f"{where}: {member.path!r} comes twice", hint="it is no layer")
        made[member.path] = member
    return list(made.values())
