"""Kubelet's checkpoint archives, turned into snapshots.

`POST /checkpoint/NAMESPACE/POD/CONTAINER` makes a tar by way of the container runtime:

    checkpoint/            CRIU's images; thaw.tar among them is our part, see pack.py
    rootfs-diff.tar        what the worker changed in its root file system, as an image's layer
    config.dump, spec.dump, …    what the runtime needs; not read

Our part has the config, the index and the volumes, but not the difference, and pages files are
whole. In a store it is the other way round, so the config is written anew.

Whoever hands an archive over may have written it, so nothing is laid as it says: the files that
are known by name are written anew, into folders of ours, and are nobody else's.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from shim.errors import Damaged, Unfit
from shim.removal import remove_folder
from shim.snapshot import indexing
from shim.snapshot.archive import Archive, pack
from shim.snapshot.config import DAMAGED, LARGEST, SKELETON_FILE, VOLUME_PART, File, SnapshotConfig
from shim.snapshot.importing import HINT, Chunks, write_new
from shim.snapshot.layer import unpack_layer
from shim.snapshot.laying import fill, judged
from shim.snapshot.pack import PACK
from shim.snapshot.parts import PART, Parts
from shim.snapshot.pieces import FILE, Pieces, gpu_number
from shim.snapshot.snapshot import CONFIG, checksum, read_file
from shim.snapshot.store import Draft
from shim.snapshot.tar import Kind, Member, members
from shim.snapshot.tree import CREATE

_IMAGES = "checkpoint/"
_LAYER = "rootfs-diff.tar"
_DESCRIPTORS = "descriptors.json"  # runc's
_WORK = "import"  # a folder of the draft, until it is whole
_OTHERS = re.compile(r"[A-Za-z0-9._-]{1,200}(?:/[A-Za-z0-9._/-]{1,200})?", re.ASCII)
_MOST_FILES = 100_000
_GPU_INDEX = "index/gpu"
_OUR_FOLDERS = ("", "index", "volumes")


def is_checkpoint(name: str) -> bool:
    """Whether a file of that name begins such an archive."""
    return name.startswith(_IMAGES) or name.endswith((".dump", ".log")) or name == _LAYER


def take_checkpoint(draft: Draft, files: Iterable[tuple[str, int, Chunks]], where: str) -> None:
    """Make a snapshot of the archive's files in a draft. Raises Unfit, Damaged and OSError."""
    work, criu = draft.path / _WORK, draft.path / "criu"
    for folder in (work, criu):
        folder.mkdir(mode=0o700)
    _take(files, work, criu, where)
    if not (work / PACK).exists():
        raise Unfit(
            f"{where}: there is no {PACK} in it",
            hint="it was made without Thaw: such a checkpoint is for the runtime that made it",
        )
    config = _unpacked(work, criu, where)
    difference = (work / _LAYER).exists()
    if difference:
        _lay_difference(work, draft.path / "rootfs.tar", where)
    Pieces(draft.pages).take(criu)
    Pieces(draft.pages).take_gpu(criu)
    indexing.make(criu, draft.path / "index", pages=draft.pages)
    if (work / "ours" / _GPU_INDEX).exists():  # the index is made anew but for what it does not say
        (work / "ours" / _GPU_INDEX).rename(draft.path / _GPU_INDEX)
    volumes = work / "ours" / "volumes"
    if any(volumes.iterdir()):
        volumes.rename(draft.path / "volumes")
    remove_folder(str(work))
    _write_config(draft, replace(config, difference=difference))


def _take(files: Iterable[tuple[str, int, Chunks]], work: Path, criu: Path, where: str) -> None:
    for number, (name, _size, chunks) in enumerate(files):
        place = _place(name, work, criu)
        if number >= _MOST_FILES or (place is None and not _OTHERS.fullmatch(name)):
            raise Unfit(f"{where}: {name!a} is no part of a checkpoint", hint=HINT)
        if place is not None:
            if os.path.lexists(place):
                raise Damaged(f"{where}: {name!a} comes twice", hint=HINT)
            write_new(place, chunks)


def _place(name: str, work: Path, criu: Path) -> Path | None:
    """Where a file goes; None if it is not wanted."""
    if name in (_IMAGES + PACK, _LAYER):
        return work / name.rpartition("/")[2]
    folder, _, image = name.partition("/")
    wanted = image.endswith(".img") or image == _DESCRIPTORS or gpu_number(image) is not None
    if f"{folder}/" == _IMAGES and wanted and SKELETON_FILE.fullmatch(f"criu/{image}"):
        return criu / image
    return None


def _unpacked(work: Path, criu: Path, where: str) -> SnapshotConfig:
    """The config of our part, and the images and volumes as it says. Raises Damaged."""
    ours = work / "ours"
    for folder in (ours, ours / "volumes", ours / "index"):
        folder.mkdir(mode=0o700)
    _take_ours(work / PACK, ours)
    config = SnapshotConfig.from_json(read_file(ours / CONFIG, LARGEST), f"{where}: {CONFIG}")
    volumes = _listed(ours / "volumes", "volumes/")
    images = _listed(criu, "criu/")
    found = volumes | {name: path for name, path in images.items() if not _has_pages(path.name)}
    found |= _listed(ours / "index", "index/")
    wanted = {name for name in config.files if name.startswith(("volumes/", "criu/", _GPU_INDEX))}
    for name in sorted(wanted ^ found.keys()):
        raise Damaged(f"{where}: {name} is missing, or too much", hint=DAMAGED)
    for name, path in found.items():
        if checksum(path) != config.files[name]:
            raise Damaged(f"{where}: {name} is not what it was", hint=DAMAGED)
    sizes = {path.name: path.stat().st_size for path in images.values() if _has_pages(path.name)}
    if sizes != config.pages:
        raise Damaged(f"{where}: its pages files are not what they were", hint=DAMAGED)
    return config


def _has_pages(name: str) -> bool:
    return FILE.fullmatch(name) is not None or gpu_number(name) is not None


def _take_ours(path: Path, ours: Path) -> None:
    """Write the config and the volumes of our part anew. Raises Unfit and Damaged."""
    where = str(path)
    with Parts(path, whole=True) as parts:
        for member in judged(members(parts, where), where, False):
            name = os.fsdecode(member.path)
            if not _belongs(member, name):
                raise Damaged(f"{PACK}: {name!a} has no place in a snapshot", hint=DAMAGED)
            if name in (CONFIG, _GPU_INDEX) or VOLUME_PART.fullmatch(name):
                with open(os.open(ours / name, CREATE, 0o600), "wb") as file:
                    fill(member, parts, file.fileno())


def _belongs(member: Member, name: str) -> bool:
    """Whether there is such a member in what pack.py makes; the index is, and is made anew."""
    if member.kind is Kind.FOLDER:
        return name in _OUR_FOLDERS
    if member.kind is not Kind.FILE:
        return False
    if name == CONFIG:
        return member.size <= LARGEST
    if VOLUME_PART.fullmatch(name):
        return member.size <= PART
    return name.startswith("index/") and SKELETON_FILE.fullmatch(name) is not None


def _listed(folder: Path, prefix: str) -> dict[str, Path]:
    """The files in a folder of ours, by the names that they have in a snapshot."""
    return {f"{prefix}{path.name}": path for path in folder.iterdir()}


def _lay_difference(work: Path, base: Path, where: str) -> None:
    """The layer, as the archive of an overlay's upper directory."""
    layer, upper = work / _LAYER, work / "upper"
    with open(layer, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    if compressed:
        plain = work / "layer"
        try:
            with gzip.open(layer) as source, open(plain, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
            raise Damaged(f"{where}: {_LAYER}: {error}", hint=HINT) from error
        layer = plain
    upper.mkdir(mode=0o755)
    unpack_layer(layer, upper)
    pack(upper, base)


def _write_config(draft: Draft, config: SnapshotConfig) -> None:
    """The document for what is in the draft now."""
    files: dict[str, File] = {}
    for folder in ("criu", "index", "volumes"):
        for path in sorted((draft.path / folder).glob("*")):
            files[f"{folder}/{path.name}"] = checksum(path)
    for path in Archive(draft.path / "rootfs.tar").parts():
        files[path.name] = checksum(path)
    pieces = Pieces(draft.pages).found() | Pieces(draft.pages).found_gpu()
    pages = {name: path.stat().st_size for name, path in sorted(pieces.items())}
    document = replace(config, files=files, pages=pages).to_json()
    write_new(draft.path / CONFIG, [document.encode()])
