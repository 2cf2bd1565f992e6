"""One snapshot: a folder, opened, and believed as far as its owner goes."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from shim._native import ffi, lib
from shim.errors import Damaged, Unfit
from shim.lean.threads import at_once
from shim.native import check
from shim.snapshot.config import DAMAGED, LARGEST, File, SnapshotConfig, parse_json
from shim.snapshot.tree import open_file

if TYPE_CHECKING:
    from shim.snapshot.archive import Archive

CONFIG = "config.json"
PAGES = "pages"
LAYOUT_INDEX = "index.json"  # of the OCI image layout
SHARED = "shared"
USED = "used"

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_LARGEST_LAYOUT_INDEX = 1 << 20  # bytes
# What is not ours to believe, as nothing is restored from it: the artifact's view, CRIU's log.
_UNREAD = frozenset({"blobs", "log"})
_DRAFTS = ".draft-"  # begins the names of files that are being written, to be renamed
READERS = min(8, os.cpu_count() or 1)  # threads that read files for their checksums
_DEEPEST = 2  # folders below a snapshot's


class Snapshot:
    """A snapshot in the folder `path`; `stripes` may have some of its pieces.

    `images` is for a checkpoint that containerd asked for: its images lie outside.
    """

    def __init__(
        self, path: Path, stripes: Sequence[Path] = (), images: Path | None = None
    ) -> None:
        self.path = path
        self.id = path.name
        self.roots = (path, *(stripe for stripe in stripes if os.path.lexists(stripe)))
        self.criu = images or path / "criu"
        self.index = path / "index"
        self.pages = (images,) if images else tuple(root / PAGES for root in self.roots)
        self.config = _read_config(path / CONFIG)

    @property
    def difference(self) -> Archive:
        """What the worker changed in its root file system; see config.difference."""
        from shim.snapshot.archive import Archive

        return Archive(self.path / "rootfs.tar")

    def volume(self, number: int) -> Archive:
        """The saved contents of one volume, as numbered in the config."""
        from shim.snapshot.archive import Archive

        return Archive(self.path / "volumes" / f"{number}.tar")

    @property
    def digest(self) -> str:
        """The digest of its manifest, "sha256:…"; empty while it is not sealed.

        Raises Damaged if it is sealed with something else.
        """
        path = self.path / LAYOUT_INDEX
        if not os.path.lexists(path):
            return ""
        document = parse_json(read_file(path, _LARGEST_LAYOUT_INDEX), str(path))
        try:
            found = document["manifests"][0]["digest"]
        except (KeyError, IndexError, TypeError):
            found = None
        if not isinstance(found, str) or not _DIGEST.fullmatch(found):
            raise Damaged(f"{path}: it names no manifest", hint=DAMAGED)
        return found

    @property
    def shared(self) -> bool:
        """Whether pods of all namespaces may restore it."""
        return os.path.lexists(self.path / SHARED)

    @property
    def used(self) -> float:
        """When it was last restored, as Unix time; 0.0: never."""
        try:
            return os.lstat(self.path / USED).st_mtime
        except OSError:
            return 0.0

    @property
    def created(self) -> float:
        """When it was made, as Unix time; 0.0 if what it says is no time."""
        from datetime import UTC, datetime

        try:
            made = datetime.strptime(self.config.created, "%Y-%m-%dT%H:%M:%SZ")
        except ValueError:
            return 0.0
        return made.replace(tzinfo=UTC).timestamp()

    def file(self, name: str) -> Path:
        """Where one of config.files is."""
        folder, _, rest = name.partition("/")
        return self.criu / rest if folder == "criu" else self.path / name

    def piece(self, name: str) -> Path:
        """Where one of config.pages is; in the first folder if it is nowhere."""
        paths = [folder / name for folder in self.pages]
        return next((path for path in paths if os.path.lexists(path)), paths[0])


def open_at(path: Path, stripes: Sequence[Path] = (), images: Path | None = None) -> Snapshot:
    """The snapshot in a folder, wherever that is. Raises Unfit unless it is root's alone."""
    check_owner(path)
    snapshot = Snapshot(path, stripes, images)
    for root in snapshot.roots[1:]:
        check_owner(root)
    return snapshot


def check_owner(path: Path) -> None:
    """Raise Unfit unless `path` is a folder of root's (or ours) that nobody else can write to."""
    try:
        info = os.lstat(path)
    except OSError as error:
        raise Unfit(f"cannot read {path}: {error.strerror}", hint=DAMAGED) from error
    if not stat.S_ISDIR(info.st_mode):
        raise Unfit(f"{path} is not a folder", hint="a snapshot is a folder, and no link to one")
    _check_access(path, info)


def check_file_owner(path: Path) -> None:
    """As check_owner(), of a file that is there."""
    _check_regular(path, os.lstat(path))


def check_whole(snapshot: Snapshot, *, skeleton: bool = False, sums: bool = True) -> None:
    """Raise Unfit unless all that the config lists is there, as it was, and root's alone.

    The checksums of CRIU's images and of the index are Index.check_files' affair, those of pages
    the filler's; with `skeleton` the former are computed here, too, for images without an index,
    and without `sums` none are.
    """
    for root in snapshot.roots:
        _check_tree(root)
    for name, size in snapshot.config.pages.items():
        _check_file(snapshot.piece(name), size)
    for name, file in snapshot.config.files.items():
        _check_file(snapshot.file(name), file.size)
    _check_complete(snapshot)
    if sums:
        check_sums(snapshot, skeleton=skeleton)


def check_sums(snapshot: Snapshot, *, skeleton: bool) -> None:
    """The checksums alone, as check_whole(). Raises Damaged."""
    wanted = [
        (snapshot.file(name), file)
        for name, file in snapshot.config.files.items()
        if skeleton or not name.startswith(("criu/", "index/"))
    ]
    at_once(lambda one: _check_sum(*one), wanted, READERS)


def _check_complete(snapshot: Snapshot) -> None:
    """What the config says is there must be listed, or it would be missing without a word."""
    bases = [f"volumes/{number}.tar" for number in range(len(snapshot.config.volumes))]
    if snapshot.config.difference:
        bases.append("rootfs.tar")
    for base in bases:
        if f"{base}.0000" not in snapshot.config.files:
            raise Damaged(f"{snapshot.path / base}.0000 is missing", hint=DAMAGED)


def _check_tree(folder: Path, depth: int = 0) -> None:
    check_owner(folder)
    if depth > _DEEPEST:
        raise Unfit(f"{folder} does not belong to a snapshot", hint=DAMAGED)
    for entry in list(os.scandir(folder)):  # all of it, or it would stay open
        path = Path(entry.path)
        if depth == 0 and (entry.name in _UNREAD or entry.name.startswith(_DRAFTS)):
            continue
        try:
            info = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # a mark that has been taken away; what is needed is listed
            continue
        if stat.S_ISDIR(info.st_mode):
            _check_tree(path, depth + 1)
        else:
            _check_regular(path, info)


def _check_file(path: Path, size: int) -> None:
    # CRIU does not look: it waits for ever for pages that a shortened file does not hold.
    try:
        info = os.lstat(path)
    except OSError:
        raise Damaged(f"{path} is missing, it had {size} bytes", hint=DAMAGED) from None
    _check_regular(path, info)
    if info.st_size != size:
        raise Damaged(f"{path} has {info.st_size} bytes, it had {size}", hint=DAMAGED)


def _check_regular(path: Path, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise Unfit(f"{path} is no regular file", hint="a snapshot has no links and special files")
    _check_access(path, info)


def _check_access(path: Path, info: os.stat_result) -> None:
    if info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o022:
        raise Unfit(
            f"{path} can be written to by others than root",
            hint="whoever can write a snapshot is root on this node: chown root, chmod go-w",
        )


def _check_sum(path: Path, wanted: File) -> None:
    try:
        found = checksum(path)
    except OSError as error:
        raise Damaged(f"cannot read {path}: {error.strerror}", hint=DAMAGED) from error
    if found != wanted:
        raise Damaged(f"{path} is not what it was (its checksum is wrong)", hint=DAMAGED)


def checksum(path: Path) -> File:
    """The size and the CRC-32C of a regular file. Raises OSError."""
    fd = open_file(path)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "it is no file", str(path))
        crc, size = ffi.new("uint32_t *"), ffi.new("uint64_t *")
        check(lib.thaw_crc32c_file(fd, crc, size), "", str(path))
        return File(size[0], crc[0])
    finally:
        os.close(fd)


def read_file(path: Path, most: int) -> bytes:
    """A small regular file of at most `most` bytes. Raises Unfit."""
    try:
        fd = open_file(path)
    except OSError as error:
        raise Unfit(f"cannot read {path}: {error.strerror}", hint=DAMAGED) from error
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > most:
            raise Damaged(f"{path} is no file of ours, or too large", hint=DAMAGED)
        _check_access(path, info)
        with open(fd, "rb", closefd=False) as file:
            return file.read(most)
    except OSError as error:
        raise Unfit(f"cannot read {path}: {error.strerror}", hint=DAMAGED) from error
    finally:
        os.close(fd)


def _read_config(path: Path) -> SnapshotConfig:
    return _config_of(read_file(path, LARGEST), str(path))


@lru_cache(maxsize=1)
def _config_of(text: bytes, path: str) -> SnapshotConfig:
    """A restore looks twice, when it reads ahead and when it is asked for; it is judged once."""
    return SnapshotConfig.from_json(text, path)


def size_of(folder: Path) -> int:
    """Bytes on disk below `folder`; a file with several names counts once."""
    return sum(blocks_of(folder).values())


def blocks_of(folder: Path) -> dict[tuple[int, int], int]:
    """What is on the disk below `folder`: (device, inode) → bytes. What goes meanwhile is not."""
    blocks = {}
    for path in _files_below(folder):
        with suppress(FileNotFoundError):
            info = os.lstat(path)
            blocks[info.st_dev, info.st_ino] = info.st_blocks * 512
    return blocks


def _files_below(folder: Path) -> Iterator[str]:
    for parent, _folders, files in os.walk(folder):
        yield from (os.path.join(parent, name) for name in files)
