"""A snapshot as an OCI image layout, in place: blobs are further names of the files that it has.

    blobs/sha256/HEX    config, layers and the manifest; all but skeleton.tar are hard links
    oci-layout, index.json

*Sealing* makes it of a snapshot, *laying out* makes a snapshot of blobs. Both can be broken off at
any point and done again: index.json, which makes the rest count, comes last.

https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shim.errors import Damaged, FailedPrecondition, NoSuchSnapshot
from shim.names import SNAPSHOTS, is_id
from shim.snapshot import locks
from shim.snapshot.config import DAMAGED, LARGEST, SKELETON_FILE, SnapshotConfig
from shim.snapshot.hashing import hash_blobs
from shim.snapshot.manifest import (
    CONFIG,
    KINDS,
    LARGEST_MANIFEST,
    MANIFEST,
    MOST_LAYERS,
    PAGES,
    SKELETON,
    SNAPSHOT,
    Descriptor,
    Manifest,
)
from shim.snapshot.replacing import sync
from shim.snapshot.snapshot import CONFIG as CONFIG_FILE
from shim.snapshot.snapshot import LAYOUT_INDEX, Snapshot, check_whole, read_file
from shim.snapshot.store import Store, held
from shim.snapshot.writing import writing

__all__ = [
    "Descriptor",
    "Manifest",
    "blobs_of",
    "check_digest",
    "hash_blobs",
    "lay_out",
    "manifest_of",
    "seal",
    "size_to_seal",
]

BLOBS = Path("blobs/sha256")
_LAYOUT = "oci-layout"
_DRAFT = ".draft-"
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_CHUNK = 4 << 20
_BLOCK = 512  # bytes of a tar's blocks
_NUMBERS = re.compile(r"[0-9]+")

Progress = Callable[[int], None]


def seal(
    snapshot: Snapshot,
    threads: int = 0,
    progress: Progress | None = None,
    cancelled: threading.Event | None = None,
) -> str:
    """Make a snapshot an artifact; answers the manifest's digest, "sha256:…".

    One that is one already is left as it is. `progress` is told how many more bytes are read, of
    size_to_seal() in all. Raises Unfit, StoreFull, FailedPrecondition, Cancelled.
    """
    with held(snapshot.path), writing(snapshot.path):
        if not os.path.lexists(snapshot.path):
            raise NoSuchSnapshot(f"{snapshot.path} was removed just now", hint="see `thaw ls`")
        digest = snapshot.digest
        if not digest:
            check_whole(snapshot, skeleton=True)  # what is rotten shall not get a digest
            folder = snapshot.path / BLOBS
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            files = _files(snapshot)
            digests = hash_blobs(list(files.values()), threads, progress, cancelled)
            with _alone(folder):
                for path, digits in zip(files.values(), digests, strict=True):
                    _name(path, folder / digits)
                skeleton = _seal_skeleton(snapshot, folder)
                manifest = _manifest(snapshot, skeleton, dict(zip(files, digests, strict=True)))
                digest = _finish(snapshot.path, manifest.to_json())
        _note(snapshot, digest)
    return digest


def size_to_seal(snapshot: Snapshot) -> int:
    """How many bytes seal() will read."""
    return sum(os.lstat(path).st_size for path in _files(snapshot).values())


def manifest_of(snapshot: Snapshot) -> tuple[bytes, Manifest]:
    """The manifest of a sealed snapshot, byte for byte and read. Raises Unfit."""
    digest = snapshot.digest
    if not digest:
        raise FailedPrecondition(f"{snapshot.path} is not sealed", hint="`thaw verify --seal`")
    path = snapshot.path / BLOBS / digest.removeprefix("sha256:")
    text = read_file(path, LARGEST_MANIFEST)
    if hashlib.sha256(text).hexdigest() != path.name:
        raise Damaged(f"{path} is not what it was", hint=DAMAGED)
    return text, Manifest.parse(text, str(path))


def check_digest(snapshot: Snapshot, digest: str) -> None:
    """Raise Damaged unless a snapshot is what a digest stands for.

    The manifest and the config are hashed; the rest are the config's checksums.
    """
    good = snapshot.digest == digest
    if good:
        config = read_file(snapshot.path / CONFIG_FILE, LARGEST)
        good = hashlib.sha256(config).hexdigest() == manifest_of(snapshot)[1].config.hex
    if not good:
        raise Damaged(f"{snapshot.path} is not {digest}", hint=DAMAGED)


def blobs_of(snapshot: Snapshot, manifest: Manifest) -> dict[str, Path]:
    """Where each blob of a sealed snapshot is, by digest: striped ones where they really are."""
    found = {}
    for blob in manifest.blobs:
        folder, _, name = blob.title.partition("/")
        inside = snapshot.path / BLOBS / blob.hex
        found[blob.digest] = snapshot.piece(name) if folder == PAGES else inside
    return found


def lay_out(folder: Path, manifest: bytes) -> None:
    """Make a snapshot of the blobs in `folder`/blobs/sha256, whose digests were checked.

    It is complete then, but for being brought to the disk. Raises Unfit if there is not exactly
    what the config and the manifest say, and OSError.
    """
    found = Manifest.parse(manifest)
    blobs = folder / BLOBS
    for blob in found.blobs:
        _check_blob(blobs / blob.hex, blob.size)
    path = blobs / found.config.hex
    config = SnapshotConfig.from_json(read_file(path, LARGEST), str(path))
    _check_same(config, found)
    _name(path, folder / CONFIG_FILE)
    for layer in found.layers:
        if layer.title != SKELETON:
            (folder / layer.title).parent.mkdir(mode=0o700, exist_ok=True)
            _name(blobs / layer.hex, folder / layer.title)
    with open(blobs / found.layers[0].hex, "rb") as tar:
        _unpack_skeleton(tar, config, folder)
    with _alone(blobs):
        _finish(folder, manifest)


def _files(snapshot: Snapshot) -> dict[str, Path]:
    """What becomes a blob as it is: title → path. The config has the first place."""
    titles = [name for name in snapshot.config.files if not SKELETON_FILE.fullmatch(name)]
    pieces = {f"{PAGES}/{name}": snapshot.piece(name) for name in snapshot.config.pages}
    files = pieces | {name: snapshot.file(name) for name in titles}
    return {"": snapshot.path / CONFIG_FILE} | {
        name: files[name] for name in sorted(files, key=_order)
    }


def _order(title: str) -> tuple[int, list[int]]:
    """Where a layer stands in the manifest: by kind, then by the numbers in its name."""
    return _kind(title), [int(number) for number in _NUMBERS.findall(title)]


def _kind(title: str) -> int:
    for place, kind in enumerate(KINDS):
        if kind.titles.fullmatch(title):
            return place
    raise FailedPrecondition(
        f"{title} has no place in an artifact", hint="it is a checkpoint that containerd asked for"
    )


def _manifest(snapshot: Snapshot, skeleton: Descriptor, digests: dict[str, str]) -> Manifest:
    sizes = {**{name: file.size for name, file in snapshot.config.files.items()}}
    sizes |= {f"{PAGES}/{name}": size for name, size in snapshot.config.pages.items()}
    layers = [
        Descriptor(KINDS[_kind(title)].media_type, f"sha256:{digits}", sizes[title], title)
        for title, digits in digests.items()
        if title
    ]
    if len(layers) >= MOST_LAYERS:
        raise FailedPrecondition(
            f"{snapshot.path} has {len(layers)} files, too many for an artifact",
            hint=f"at most {MOST_LAYERS - 1}",
        )
    size = os.lstat(snapshot.path / CONFIG_FILE).st_size
    config = Descriptor(CONFIG, f"sha256:{digests['']}", size)
    return Manifest(config, [skeleton, *layers], snapshot.config.created)


def _check_same(config: SnapshotConfig, manifest: Manifest) -> None:
    """The layers are what the config lists: nothing is missing, nothing more is there."""
    wanted = {
        name: file.size for name, file in config.files.items() if not SKELETON_FILE.fullmatch(name)
    }
    wanted |= {f"{PAGES}/{name}": size for name, size in config.pages.items()}
    found = {layer.title: layer.size for layer in manifest.layers if layer.title != SKELETON}
    if wanted != found:
        name = min(name for name, _ in wanted.items() ^ found.items())
        raise Damaged(f"manifest and config do not agree on {name}", hint=DAMAGED)


def _check_blob(path: Path, size: int) -> None:
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        raise Damaged(f"blob {path} is missing", hint=DAMAGED) from None
    if not stat.S_ISREG(info.st_mode) or info.st_size != size:
        raise Damaged(f"blob {path} has {info.st_size} bytes, not {size}", hint=DAMAGED)
    os.chmod(path, 0o600)


# The skeleton: a tar of which every byte follows from the config and the files


def _skeleton_names(config: SnapshotConfig) -> list[str]:
    return sorted(filter(SKELETON_FILE.fullmatch, config.files))


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii")


def _padding(size: int) -> int:
    return -size % _BLOCK


def _skeleton_size(config: SnapshotConfig) -> int:
    sizes = [config.files[name].size for name in _skeleton_names(config)]
    return sum(_BLOCK + size + _padding(size) for size in sizes) + 2 * _BLOCK


def _skeleton_bytes(snapshot: Snapshot) -> Iterator[bytes]:
    for name in _skeleton_names(snapshot.config):
        size = snapshot.config.files[name].size
        yield _header(name, size)
        with open(snapshot.file(name), "rb") as file:
            left = size
            while left:
                data = file.read(min(left, _CHUNK))
                if not data:
                    raise Damaged(f"{snapshot.file(name)} has become shorter", hint=DAMAGED)
                left -= len(data)
                yield data
        yield bytes(_padding(size))
    yield bytes(2 * _BLOCK)


def _seal_skeleton(snapshot: Snapshot, folder: Path) -> Descriptor:
    size = _skeleton_size(snapshot.config)
    if size > KINDS[0].largest:
        raise FailedPrecondition(
            f"CRIU's images in {snapshot.path} have {size} bytes, too many for an artifact",
            hint=f"at most {KINDS[0].largest}, pages not counted",
        )
    sha256 = hashlib.sha256()
    with _draft(folder.parent) as (path, file):
        for data in _skeleton_bytes(snapshot):
            sha256.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
        os.rename(path, folder / sha256.hexdigest())
    return Descriptor(KINDS[0].media_type, f"sha256:{sha256.hexdigest()}", size, SKELETON)


def _unpack_skeleton(tar: BinaryIO, config: SnapshotConfig, folder: Path) -> None:
    """Write the files of the skeleton; a tar that differs in a byte from ours is Damaged."""
    for inner in ("criu", "index", PAGES):
        (folder / inner).mkdir(mode=0o700, exist_ok=True)
    for name in _skeleton_names(config):
        size = config.files[name].size
        if tar.read(_BLOCK) != _header(name, size):
            raise Damaged(f"{SKELETON}: expected {name}, found something else", hint=DAMAGED)
        path = folder / name
        path.unlink(missing_ok=True)  # of an attempt that was broken off
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o600), "wb") as file:
            file.writelines(_taken(tar, size))
        if tar.read(_padding(size)) != bytes(_padding(size)):
            raise Damaged(f"{SKELETON}: there is something behind {name}", hint=DAMAGED)
    if tar.read(2 * _BLOCK + 1) != bytes(2 * _BLOCK):
        raise Damaged(f"{SKELETON}: there is more in it than the config lists", hint=DAMAGED)


def _taken(tar: BinaryIO, size: int) -> Iterable[bytes]:
    while size:
        data = tar.read(min(size, _CHUNK))
        if not data:
            raise Damaged(f"{SKELETON} is cut off", hint=DAMAGED)
        size -= len(data)
        yield data


# Files that appear whole


def _name(path: Path, name: Path) -> None:
    """Another name for a file; a link across file systems, which only others follow."""
    try:
        if os.lstat(path).st_dev == os.lstat(name.parent).st_dev:
            os.link(path, name, follow_symlinks=False)
        else:
            name.symlink_to(os.path.abspath(path))
    except FileExistsError:  # two files of the same bytes, or an attempt that was broken off
        pass


@contextmanager
def _draft(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    path = folder / f"{_DRAFT}{os.urandom(6).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with open(os.open(path, flags, 0o600), "wb") as file:
            yield path, file
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _alone(blobs: Path) -> Iterator[None]:
    """Nobody else seals this snapshot meanwhile: what is half written there was left by the dead.

    Without locks that cannot be known, and is left.
    """
    with locks.alone(blobs.parent / locks.LOCK, keep=False) as certain:
        for name in os.listdir(blobs.parent) if certain else []:
            if name.startswith(_DRAFT):
                (blobs.parent / name).unlink(missing_ok=True)
        yield


def _write(folder: Path, name: str | Path, data: bytes) -> None:
    # Drafts are where nobody looks: a restore may be reading the snapshot meanwhile.
    path = folder / name
    with _draft(folder / BLOBS.parent) as (draft, file):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        os.rename(draft, path)


def _finish(folder: Path, manifest: bytes) -> str:
    digits = hashlib.sha256(manifest).hexdigest()
    _write(folder, BLOBS / digits, manifest)
    _write(folder, _LAYOUT, b'{"imageLayoutVersion": "1.0.0"}\n')
    sync(folder / BLOBS)
    sync(folder / BLOBS.parent)
    index = {
        "schemaVersion": 2,
        "mediaType": _INDEX_TYPE,
        "manifests": [
            {
                "mediaType": MANIFEST,
                "artifactType": SNAPSHOT,
                "digest": f"sha256:{digits}",
                "size": len(manifest),
            }
        ],
    }
    _write(folder, LAYOUT_INDEX, json.dumps(index, indent=1).encode() + b"\n")
    sync(folder)
    return f"sha256:{digits}"


def _note(snapshot: Snapshot, digest: str) -> None:
    """Let the store find it by its digest, if it is in one."""
    if snapshot.path.parent.name == SNAPSHOTS and is_id(snapshot.id):
        Store(snapshot.path.parent.parent).note_digest(snapshot.id, digest)
