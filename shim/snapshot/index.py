"""The index of a snapshot: what of its memory is filled past CRIU, and CRIU's images without that.

A folder beside CRIU's images, which stay as they are:

    index.json           the document: tasks, files, sizes and checksums, or why there is no more
    extents              a header, then records of struct thaw_extent (native/thaw.h)
    pagemap-*.img        the skeleton: pagemaps without the extents and without zero pages, and
    pages-*.img          the pages that are left

Everything is covered by a checksum (CRC-32C): the document by one in the header of the extents, the
records and the header itself by two others there, the skeleton's and CRIU's own files by those in
the document, and each extent's data by the one in its record.

An index is read from disk as untrusted input: whatever its bytes are, it opens or Unfit is raised.
How one is made: indexing.py.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shim._native import ffi, lib
from shim.errors import Unfit
from shim.native import check
from shim.snapshot import extents as listed
from shim.snapshot.extents import Columns, Range
from shim.snapshot.images import NotIndexable, mappings
from shim.snapshot.layout import Blob

FOLDER = "index"
DOCUMENT = "index.json"
EXTENTS = "extents"
FORMAT = 1
DAMAGED = "the snapshot is damaged: remove it with `thaw rm` and make it again"

_HEADER = struct.Struct("<8sIIQII")  # magic, format, document, count, records, header before this
_MAGIC = b"THAWEXTS"
_LARGEST = 1 << 30  # bytes of a file of ours
# What CRIU and runc read; runc keeps the standard descriptors' targets there.
READ_BY_CRIU = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*\.img|descriptors\.json")

Sums = dict[str, tuple[int, int]]  # name → size in bytes, CRC-32C


@dataclass(frozen=True)
class Document:
    """index.json. Without a `reason` all the rest means something."""

    reason: str  # why the images are not indexed
    tasks: list[int]  # pids, as the processes see them, of those that have extents
    sources: list[Blob]  # the files, among CRIU's, that extents lie in
    skeleton: Sums  # files beside the document, which stand for CRIU's of the same names
    images: Sums  # CRIU's files that CRIU reads as they are
    sizes: dict[str, int]  # bytes: "extents", "zero" (dropped), "skeleton" (pages left to CRIU)


class Index:
    """An index that was opened, and can be believed as far as its own files go."""

    def __init__(
        self,
        folder: Path,
        images: Path,
        document: Document,
        records: bytes,
        ranges: list[list[Range]],
    ) -> None:
        self.folder = folder
        self.images = images
        self.reason = document.reason
        self.tasks = document.tasks
        self.sources = document.sources
        self.sizes = document.sizes
        self.extents = records  # struct thaw_extent[]
        self.count = len(records) // listed.SIZE
        self.bytes = document.sizes["extents"]
        self.ranges = ranges  # of each task, what its extents cover: by address, merged
        self._skeleton = document.skeleton
        self._images = document.images

    @classmethod
    def open(cls, folder: Path, images: Path) -> Index:
        """Read the index in `folder` of the images in `images`. Raises Unfit.

        It is complete; its extents are in files that are as large as they were, and go to memory
        that the processes have (mm-*.img) and that can be filled. Whether CRIU's images are
        otherwise what they were says check_files().
        """
        try:
            records, text = _parts(_read(folder / EXTENTS), _read(folder / DOCUMENT))
            document = _document(text)
            ranges = _check(document, records, images)
        except (ValueError, NotIndexable, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise Unfit(f"cannot use the index {folder}: {reason}", hint=DAMAGED) from error
        return cls(folder, images, document, records, ranges)

    def check_files(self) -> None:
        """Raise Unfit unless all files that CRIU would read are what they were.

        Reads them all. The data of extents is not among them: it is verified when it is filled.
        """
        for folder, sums in ((self.folder, self._skeleton), (self.images, self._images)):
            for name, wanted in sums.items():
                try:
                    found = checksum(folder / name)
                except OSError as error:
                    reason = f"cannot read {folder / name}: {error.strerror}"
                    raise Unfit(reason, hint=DAMAGED) from error
                if found != wanted:
                    raise Unfit(f"{folder / name} is not what it was", hint=DAMAGED)

    def link(self, target: Path, *, pagemaps: bool = True) -> None:
        """Make the folder from which CRIU restores: links to its images and to the skeleton.

        Without the pagemaps CRIU cannot restore anything: they come with a second call, once it is
        known that CRIU will stop for the memory that they lack.

        The links are relative: CRIU opens some images in tasks that have the container's root
        already, by a descriptor of the folder. From there the way up leads through our own mounts.
        """
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        here = os.path.realpath(target)
        for folder, sums in ((self.images, self._images), (self.folder, self._skeleton)):
            there = os.path.relpath(os.path.realpath(folder), here)
            for name in sums:
                if name.startswith("pagemap-") and not pagemaps:
                    continue
                (target / name).unlink(missing_ok=True)
                (target / name).symlink_to(f"{there}/{name}")


def checksum(path: Path) -> tuple[int, int]:
    """The size in bytes and the CRC-32C of a regular file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "it is no file", str(path))
        crc, size = ffi.new("uint32_t *"), ffi.new("uint64_t *")
        check(lib.thaw_crc32c_file(fd, crc, size), "", str(path))
        return size[0], crc[0]
    finally:
        os.close(fd)


def write(folder: Path, document: Document, records: bytes) -> None:
    """Write the document and the extents; the rest of the index is there."""
    text = json.dumps(
        {
            "format": FORMAT,
            "reason": document.reason,
            "tasks": document.tasks,
            "sources": document.sources,
            "skeleton": document.skeleton,
            "images": document.images,
            "sizes": document.sizes,
        },
        indent=1,
        sort_keys=True,
    ).encode()
    (folder / DOCUMENT).write_bytes(text)
    count = len(records) // listed.SIZE
    header = _HEADER.pack(_MAGIC, FORMAT, _crc(text), count, _crc(records), 0)
    (folder / EXTENTS).write_bytes(header[:-4] + _crc(header[:-4]).to_bytes(4, "little") + records)


def _crc(data: bytes) -> int:
    return lib.thaw_crc32c(0, data, len(data))


def _read(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None
    with open(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > _LARGEST:
            raise ValueError(f"{path.name} is no file of ours")
        return file.read(_LARGEST)


def _parts(data: bytes, text: bytes) -> tuple[bytes, bytes]:
    """The records of the extents' file and the document, both verified."""
    if len(data) < _HEADER.size:
        raise ValueError(f"{EXTENTS} is cut off")
    magic, version, of_text, count, of_records, of_header = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != FORMAT:
        raise ValueError(f"{EXTENTS} is of another format")
    if of_header != _crc(data[: _HEADER.size - 4]):
        raise ValueError(f"the header of {EXTENTS} has another checksum")
    records = data[_HEADER.size :]
    if len(records) != count * listed.SIZE or _crc(records) != of_records:
        raise ValueError(f"{EXTENTS} has another checksum")
    if _crc(text) != of_text:
        raise ValueError(f"{DOCUMENT} has another checksum")
    return records, text


def _document(text: bytes) -> Document:
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(f"{DOCUMENT} is nested too deeply") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{DOCUMENT} is of another format")
    sizes = _typed(found, "sizes", dict)
    return Document(
        reason=_typed(found, "reason", str),
        tasks=[_number(task) for task in _typed(found, "tasks", list)],
        sources=[Blob(_name(n), _number(size)) for n, size in _pairs(found, "sources")],
        skeleton=_sums(_typed(found, "skeleton", dict)),
        images=_sums(_typed(found, "images", dict)),
        sizes={name: _number(sizes.get(name)) for name in ("extents", "zero", "skeleton")},
    )


def _typed(document: Mapping[str, Any], name: str, kind: type) -> Any:
    value = document.get(name)
    if type(value) is not kind:
        raise ValueError(f"{DOCUMENT}: {name} is no {kind.__name__}")
    return value


def _pairs(document: Mapping[str, Any], name: str) -> list[list[Any]]:
    items = _typed(document, name, list)
    if any(type(item) is not list or len(item) != 2 for item in items):
        raise ValueError(f"{DOCUMENT}: {name} are no pairs")
    return list(items)


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{DOCUMENT}: expected a number, found a {type(value).__name__}")
    return value


def _name(value: object) -> str:
    if type(value) is not str or not READ_BY_CRIU.fullmatch(value):
        raise ValueError(f"{DOCUMENT}: something is no name of an image")
    return value


def _sums(items: Mapping[str, Any]) -> Sums:
    sums = {}
    for name, value in items.items():
        if type(value) is not list or len(value) != 2:
            raise ValueError(f"{DOCUMENT}: no size and checksum of {_name(name)}")
        sums[_name(name)] = (_number(value[0]), _number(value[1]))
    return sums


def _check(document: Document, records: bytes, images: Path) -> list[list[Range]]:
    """What the extents cover in each task. Raises ValueError, NotIndexable or OSError."""
    columns = Columns.of(records)
    if document.reason and columns.lengths:
        raise ValueError("there are extents of images that are not indexed")
    if sum(columns.lengths) != document.sizes["extents"]:
        raise ValueError("the extents have another size in all")
    for source in document.sources:
        _check_size(images / source.name, source.size)
    vmas = [mappings(images, task) for task in document.tasks]
    return listed.check(columns, [source.size for source in document.sources], vmas)


def _check_size(path: Path, size: int) -> None:
    info = os.lstat(path)
    if not stat.S_ISREG(info.st_mode) or info.st_size != size:
        raise ValueError(f"{path.name} has {info.st_size} bytes, it had {size}")
