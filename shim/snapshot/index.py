"""The index of a snapshot: what of its memory is filled past CRIU, and CRIU's images without that.

A folder beside CRIU's images, which stay as they are:

    index.json           the document: tasks, files, sizes and checksums, or why there is no more
    extents              a header, then records of struct thaw_extent (native/thaw.h)
    pagemap-*.img        the skeleton: pagemaps without the extents and without zero pages, and
    pages-*.img          the pages that are left

The pages files are beside CRIU's other images, or, in a snapshot, in pieces (pieces.py) in folders
of their own; then the pieces are what extents lie in.

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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from shim._native import ffi, lib
from shim.errors import Damaged
from shim.lean.threads import at_once
from shim.lean.values import Value
from shim.native import check
from shim.proto import criu_pb as pb
from shim.snapshot import extents as listed
from shim.snapshot import pagemap
from shim.snapshot.config import DAMAGED
from shim.snapshot.extents import Columns, Range
from shim.snapshot.images import NotIndexable, is_pagemap, mappings
from shim.snapshot.layout import Blob
from shim.snapshot.pieces import Pieces, link, parse
from shim.snapshot.tree import open_file

FOLDER = "index"
DOCUMENT = "index.json"
EXTENTS = "extents"
FORMAT = 1
ANEW = "`thaw index` makes it anew, if CRIU's images are whole"
OTHER_VERSION = "its index is of another version of Thaw"

_HEADER = struct.Struct("<8sIIQII")  # magic, format, document, count, records, header before this
_MAGIC = b"THAWEXTS"
# Bytes that files of ours may have: the extents of 1 TiB, of 256 KiB each (most have 4 MiB), and
# the names and checksums of 100,000 images.
_MOST_EXTENTS = 128 << 20
_MOST_TEXT = 8 << 20
_READERS = 8  # threads that look at files
# Nanoseconds: of two changes in one tick of the kernel's clock the second does not show.
_SETTLED = 1_000_000_000
# What CRIU and runc read; runc keeps the standard descriptors' targets there.
READ_BY_CRIU = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*\.img|descriptors\.json")
_MEMORY = re.compile(r"mm-[0-9]+\.img")

Sums = dict[str, tuple[int, int]]  # name → size in bytes, CRC-32C


class _OtherVersion(Exception):
    """The index is whole, as far as that can be known, and not of our FORMAT."""


class Document(Value):
    """index.json. Without a `reason` all the rest means something."""

    reason: str  # why the images are not indexed
    tasks: list[int]  # pids, as the processes see them, of those that have extents
    sources: list[Blob]  # the pages files, or pieces of them, that extents lie in
    skeleton: Sums  # files beside the document, which stand for CRIU's of the same names
    images: Sums  # CRIU's files that CRIU reads as they are; also pages files of one piece
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
        pages: Sequence[Path] | None = None,
    ) -> None:
        self.folder = folder
        self.images = images
        self.remedy = ANEW if pages is None else DAMAGED  # what may help if it cannot be used
        self.reason = document.reason
        self.tasks = document.tasks
        self.sources = document.sources
        self.sizes = document.sizes
        self.extents = records  # struct thaw_extent[]
        self.count = len(records) // listed.SIZE
        self.bytes = document.sizes["extents"]
        self.ranges = ranges  # of each task, what its extents cover: by address, merged
        self._pages = Pieces([images] if pages is None else pages)
        self.paths = [self._pages.path(source.name) for source in document.sources]
        self.disks = [path.parent for path in self.paths]  # for all that we know
        self._skeleton = document.skeleton
        self._images = document.images
        self._good: dict[Path, tuple[int, ...]] = {}  # files that were right, as they were then

    @classmethod
    def open(cls, folder: Path, images: Path, pages: Sequence[Path] | None = None) -> Index:
        """Read the index in `folder` of the images in `images`. Raises Unfit.

        `pages` are the folders in which the pages files lie in pieces; otherwise they lie in
        `images`, whole. The index is complete; its extents are in files that are as large as they
        were, and go to memory that the processes have (mm-*.img) and that can be filled. Whether
        CRIU's images are otherwise what they were says check_files(). One of another version has a
        `reason`.
        """
        remedy = ANEW if pages is None else DAMAGED
        with _refusing(folder, remedy):
            try:
                records = _records(_read(folder / EXTENTS, _MOST_EXTENTS))
                document = _document(_read(folder / DOCUMENT, _MOST_TEXT), records.text)
            except _OtherVersion:
                return cls(folder, images, bare(OTHER_VERSION), b"", [], pages)
            columns = _columns(document, records.extents)
            found = cls(folder, images, document, records.extents, [], pages)
        with _refusing(folder, DAMAGED):
            found._check_sizes()
            vmas = _mappings(document, images)
        with _refusing(folder, remedy):
            found.ranges = listed.check(columns, [source.size for source in found.sources], vmas)
        return found

    def check_files(self) -> None:
        """Raise Unfit unless all files that CRIU would read are what they were.

        Reads them all, the second time those that have changed since. The data of extents is not
        among them: it is verified when it is filled.
        """
        sizes: dict[str, int] = {}  # of pages files
        files = list(self._read_by_criu())
        at_once(self._check_file, files, _READERS)
        for path, wanted in files:
            piece = parse(path.name)
            sizes[piece[0] if piece else path.name] = wanted[0]
        with _refusing(self.folder, self.remedy):
            self._check_pagemaps(sizes)

    def _check_pagemaps(self, sizes: Mapping[str, int]) -> None:
        """CRIU would wait for pages beyond the end of their file for as long as it may."""
        for path, _ in self._read_by_criu():
            if is_pagemap(path.name):
                pages, size = pagemap.sized(path.parent, path.name)
                if size > sizes.get(pages, 0):
                    raise ValueError(f"{path.name} has more pages than {pages}")

    def link(self, target: Path, wanted: Callable[[str], bool] = lambda _: True) -> None:
        """Make the folder from which CRIU restores: links to its images and to the skeleton.

        To those whose names are `wanted`. Raises OSError.
        """
        paths = [path for path, _ in self._read_by_criu() if wanted(path.name)]
        link(((path, (parse(path.name) or (path.name,))[0]) for path in paths), target)

    def whole_pieces(self) -> Iterator[tuple[Path, tuple[int, int]]]:
        """The pieces of pages that CRIU reads as they are, and what checksum() said of them."""
        for name, wanted in self._images.items():
            if parse(name):
                yield self._pages.path(name), wanted

    def _read_by_criu(self) -> Iterator[tuple[Path, tuple[int, int]]]:
        """Files, and what checksum() says of them if nothing has happened to them."""
        for name, wanted in self._images.items():
            yield (self._pages.path(name) if parse(name) else self.images / name), wanted
        for name, wanted in self._skeleton.items():
            yield self.folder / name, wanted

    def _check_file(self, listed: tuple[Path, tuple[int, int]]) -> None:
        path, wanted = listed
        hint = self.remedy if path.parent == self.folder else DAMAGED
        try:
            before = _state(path)
            if self._good.get(path) == before:
                return
            found = checksum(path)
        except OSError as error:
            raise Damaged(f"cannot read {path}: {error.strerror}", hint=hint) from error
        if found != wanted:
            raise Damaged(f"{path} is not what it was", hint=hint)
        if time.time_ns() - before[-1] > _SETTLED:
            self._good[path] = before

    def _check_sizes(self) -> None:
        for path, source in zip(self.paths, self.sources, strict=True):
            info = os.lstat(path)
            if not stat.S_ISREG(info.st_mode) or info.st_size != source.size:
                raise ValueError(f"{path.name} has {info.st_size} bytes, it had {source.size}")


def _state(path: Path) -> tuple[int, ...]:
    """What changes with a file, whoever changes it: nobody sets back when its inode has changed."""
    info = os.lstat(path)
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def checksum(path: Path) -> tuple[int, int]:
    """The size in bytes and the CRC-32C of a regular file. Raises OSError."""
    fd = open_file(path)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "it is no file", str(path))
        crc, size = ffi.new("uint32_t *"), ffi.new("uint64_t *")
        check(lib.thaw_crc32c_file(fd, crc, size), "", str(path))
        return size[0], crc[0]
    finally:
        os.close(fd)


def bare(reason: str) -> Document:
    """The document of images that are not indexed."""
    return Document(reason, [], [], {}, {}, {"extents": 0, "zero": 0, "skeleton": 0})


def write(folder: Path, document: Document, records: bytes) -> None:
    """Write the document and the extents; the rest of the index is there.

    Raises NotIndexable if they are larger than what is opened.
    """
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
    if len(text) > _MOST_TEXT or _HEADER.size + len(records) > _MOST_EXTENTS:
        raise NotIndexable("there are too many images, or too many pieces of memory")
    (folder / DOCUMENT).write_bytes(text)
    count = len(records) // listed.SIZE
    header = _HEADER.pack(_MAGIC, FORMAT, _crc(text), count, _crc(records), 0)
    (folder / EXTENTS).write_bytes(header[:-4] + _crc(header[:-4]).to_bytes(4, "little") + records)


def _crc(data: bytes) -> int:
    return lib.thaw_crc32c(0, data, len(data))


@contextmanager
def _refusing(folder: Path, hint: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, NotIndexable, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise Damaged(f"cannot use the index {folder}: {reason}", hint=hint) from error


def _read(path: Path, most: int) -> bytes:
    try:
        fd = open_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None
    with open(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > most:
            raise ValueError(f"{path.name} is no file of ours")
        return file.read(most)


class _Records(NamedTuple):
    """What the extents' file holds."""

    extents: bytes  # struct thaw_extent[]
    text: int  # the document's checksum


def _records(data: bytes) -> _Records:
    if len(data) < _HEADER.size:
        raise ValueError(f"{EXTENTS} is cut off")
    magic, version, of_text, count, of_records, of_header = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise ValueError(f"{EXTENTS} is of another format")
    if of_header != _crc(data[: _HEADER.size - 4]):
        raise ValueError(f"the header of {EXTENTS} has another checksum")
    if version != FORMAT:
        raise _OtherVersion
    extents = data[_HEADER.size :]
    if len(extents) != count * listed.SIZE or _crc(extents) != of_records:
        raise ValueError(f"{EXTENTS} has another checksum")
    return _Records(extents, of_text)


def _document(text: bytes, checksum: int) -> Document:
    if _crc(text) != checksum:
        raise ValueError(f"{DOCUMENT} has another checksum")
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(f"{DOCUMENT} is nested too deeply") from None
    if not isinstance(found, dict) or type(found.get("format")) is not int:
        raise ValueError(f"{DOCUMENT} is of another format")
    if found["format"] != FORMAT:
        raise _OtherVersion
    sizes = _typed(found, "sizes", dict)
    return Document(
        reason=_typed(found, "reason", str),
        tasks=[_number(task) for task in _typed(found, "tasks", list)],
        sources=[
            Blob(_name(n, pieces=True), _number(size)) for n, size in _pairs(found, "sources")
        ],
        skeleton=_sums(_typed(found, "skeleton", dict)),
        images=_sums(_typed(found, "images", dict), pieces=True),
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


def _name(value: object, pieces: bool = False) -> str:
    if type(value) is not str or not (
        READ_BY_CRIU.fullmatch(value) or (pieces and parse(value) is not None)
    ):
        raise ValueError(f"{DOCUMENT}: something is no name of an image")
    return value


def _sums(items: Mapping[str, Any], pieces: bool = False) -> Sums:
    sums = {}
    for name, value in items.items():
        if type(value) is not list or len(value) != 2:
            raise ValueError(f"{DOCUMENT}: no size and checksum of {_name(name, pieces)}")
        sums[_name(name, pieces)] = (_number(value[0]), _number(value[1]))
    return sums


def _columns(document: Document, records: bytes) -> Columns:
    """The extents, if they and the document can be of one index."""
    columns = Columns.of(records)
    if document.reason and columns.lengths:
        raise ValueError("there are extents of images that are not indexed")
    if sum(columns.lengths) != document.sizes["extents"]:
        raise ValueError("the extents have another size in all")
    # By number, extents of one task (or file) that is listed twice would not overlap.
    if len(set(document.tasks)) != len(document.tasks):
        raise ValueError("a task is listed twice")
    if len({source.name for source in document.sources}) != len(document.sources):
        raise ValueError("a file is listed twice")
    return columns


def _mappings(document: Document, images: Path) -> list[list[pb.Vma]]:
    """What CRIU's images say of each task. Raises ValueError, NotIndexable or OSError."""
    if not document.tasks:
        return []
    if len(document.tasks) > sum(1 for name in os.listdir(images) if _MEMORY.fullmatch(name)):
        raise ValueError("an mm-*.img is missing")
    return [mappings(images, task) for task in document.tasks]
