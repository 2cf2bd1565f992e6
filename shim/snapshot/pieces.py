"""CRIU's pages files in a snapshot: in pieces, so that they can be carried and spread over disks.

    pages-1.img.0000, pages-1.img.0001 …    a pages file, cut at multiples of PIECE

A piece is whole pages, and every extent lies within one. One after another they are what CRIU
alone would have written. They may lie in several folders, on as many disks, by turns; of an
empty file there is none, since CRIU takes a pages file that is missing for an empty one.

GPU memory that is not the driver's lies beside them, in the same folders: gpu-1.img.0000 … Such a
file has only what is not zero (gpu/memory/index.py), and CRIU never hears of it.

CRIU itself reads no pieces: what it has to restore is in the skeleton, or a file of one piece, to
which a link leads. `assemble` is for when it has to restore everything.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from shim.errors import Damaged
from shim.snapshot.config import DAMAGED
from shim.snapshot.tree import open_file

PIECE = 1 << 30  # bytes of a piece, but for the last one of a file; whole pages

FILE = re.compile(r"pages-([1-9][0-9]{0,9})\.img")  # what CRIU writes
_NAME = re.compile(rf"({FILE.pattern})\.([0-9]{{4}})")
_GPU = re.compile(r"gpu-([1-9][0-9]{0,9})\.img\.([0-9]{4})", re.ASCII)
GPU_FILE = "gpu-1.img"
_MOST = 10_000  # pieces of one file: their numbers have four digits
_CHUNK = 1 << 30


class Piece(NamedTuple):
    """A piece of a pages file, or all of it: `file` is its number in some list, `start` a place."""

    name: str
    size: int  # bytes
    file: int
    start: int  # bytes, in the file


def name_of(file: str, number: int) -> str:
    """What the piece with that number, from 0 on, of a pages file is called."""
    return f"{file}.{number:04d}"


def parse(text: str) -> tuple[str, int] | None:
    """The pages file of a piece and its number there; None if that is no name of a piece."""
    found = _NAME.fullmatch(text)
    return (found[1], int(found[3])) if found else None


def gpu_number(text: str) -> tuple[int, int] | None:
    """What a piece of GPU memory is sorted by; None if that is no name of one."""
    found = _GPU.fullmatch(text)
    return (int(found[1]), int(found[2])) if found else None


def gpu_pieces(pages: Mapping[str, int]) -> list[tuple[str, int]]:
    """The pieces of GPU memory among all of a snapshot, name and bytes, as extents count them."""
    numbers = {text: number for text in pages if (number := gpu_number(text))}
    return [(text, pages[text]) for text in sorted(numbers, key=numbers.__getitem__)]


def cut(files: Sequence[tuple[str, int]]) -> list[Piece]:
    """The pieces of files of these names and sizes in bytes. Raises OSError at too many of them."""
    if any(size > PIECE * _MOST for _, size in files):
        raise OSError(errno.EFBIG, f"a pages file has more than {_MOST} pieces")
    return [
        Piece(name_of(file, at // PIECE), min(PIECE, size - at), number, at)
        for number, (file, size) in enumerate(files)
        for at in range(0, size, PIECE)
    ]


def dealt(lengths: Sequence[int], disks: Sequence[object], most: int) -> Iterator[slice]:
    """What to do in which order, so that all disks are kept busy: slices of a list, by turns.

    Its items have these lengths in bytes and are on these disks. A slice has `most` bytes, or one
    item that is longer; those of one disk are in order.
    """
    turns: dict[object, list[slice]] = {}
    first = size = 0
    for last, length in enumerate(lengths):
        if last > first and (disks[last] != disks[first] or size + length > most):
            turns.setdefault(disks[first], []).append(slice(first, last))
            first, size = last, 0
        size += length
    if lengths:
        turns.setdefault(disks[first], []).append(slice(first, len(lengths)))
    yield from (turn for turns_ in zip_longest(*turns.values()) for turn in turns_ if turn)


class Pieces:
    """The pieces of one snapshot, in one folder or dealt over several."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)

    def place(self, number: int) -> Path:
        """The folder for a piece; `number` counts all pieces of the snapshot."""
        return self.folders[number % len(self.folders)]

    def found(self) -> dict[str, Path]:
        """The paths of all pieces of pages files that are there, by name."""
        return {text: path for text, path in self._all() if parse(text)}

    def found_gpu(self) -> dict[str, Path]:
        """Those of GPU memory."""
        return {text: path for text, path in self._all() if gpu_number(text)}

    def _all(self) -> Iterator[tuple[str, Path]]:
        for folder in self.folders:
            yield from ((text, folder / text) for text in os.listdir(folder))

    def path(self, text: str) -> Path:
        """Where the piece of that name is, or should be."""
        paths = (folder / text for folder in self.folders)
        return next((path for path in paths if os.path.lexists(path)), self.folders[0] / text)

    def take(self, images: Path) -> None:
        """Turn all pages files in a folder of CRIU's images into pieces. Raises OSError.

        If that fails, what is left of them is of no use.
        """
        numbers = {text: found[1] for text in os.listdir(images) if (found := FILE.fullmatch(text))}
        names = sorted(numbers, key=lambda text: int(numbers[text]))
        pieces = cut([(text, os.lstat(images / text).st_size) for text in names])
        # The last one first: what was copied is cut off, so that there is room for the next.
        for number, piece in reversed(list(enumerate(pieces))):
            path, target = images / names[piece.file], self.place(number) / piece.name
            if piece.start or not _renamed(path, target):
                _copy(path, piece, target)
                os.truncate(path, piece.start)
        for text in names:
            (images / text).unlink(missing_ok=True)

    def take_gpu(self, images: Path) -> None:
        """Take the pieces of GPU memory in a folder over, as they are. Raises OSError."""
        for number, (text, path) in enumerate(sorted(Pieces([images]).found_gpu().items())):
            size = os.lstat(path).st_size
            target = self.place(number) / text
            if not _renamed(path, target):
                _copy(path, Piece(text, size, 0, 0), target)
                path.unlink()

    def assemble(self, images: Path, target: Path) -> None:
        """Make `target` a folder from which CRIU restores everything.

        It gets links to all that is in `images`, and to the pages files of one piece. The others
        are put together: with holes where the pieces have some, and sharing their blocks where the
        file system can do that. Raises Damaged if a piece is missing, and OSError.
        """
        files = self._files()
        link(((images / name, name) for name in os.listdir(images)), target)
        link(((parts[0], file) for file, parts in files.items() if len(parts) == 1), target)
        for file, parts in files.items():
            if len(parts) > 1:
                _join(parts, target / file)

    def _files(self) -> dict[str, list[Path]]:
        """The pieces of each pages file, in order."""
        files: dict[str, dict[int, Path]] = {}
        for text, path in self.found().items():
            file, number = parse(text) or ("", 0)
            files.setdefault(file, {})[number] = path
        for file, parts in files.items():
            missing = next((n for n in range(len(parts)) if n not in parts), None)
            if missing is not None:
                raise Damaged(
                    f"{self.folders[0] / name_of(file, missing)} is missing", hint=DAMAGED
                )
        return {file: [parts[n] for n in sorted(parts)] for file, parts in files.items()}


def link(files: Iterable[tuple[Path, str]], folder: Path) -> None:
    """Make links in `folder`, and that, too, with these names, in the place of what may be there.

    They are relative: CRIU opens some images in tasks that have the container's root already, by a
    descriptor of the folder. From there the way up leads through our own mounts.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    here = os.path.realpath(folder)
    ways: dict[str, str] = {}  # to find one takes as long as to make ten links
    for path, name in files:
        there, file = os.path.split(path)
        if there not in ways:
            ways[there] = os.path.relpath(os.path.realpath(there), here)
        with suppress(FileNotFoundError):
            os.unlink(f"{here}/{name}")
        os.symlink(f"{ways[there]}/{file}", f"{here}/{name}")


@contextmanager
def created(path: Path, size: int) -> Iterator[int]:
    """A new file of that length, with nothing in it, open for writing past the page cache."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        # Measured: native/save.c. And what is not in the page cache need not be written from
        # there while the worker runs again.
        fd = os.open(path, flags | os.O_DIRECT, 0o600)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.open(path, (flags & ~os.O_EXCL), 0o600)  # made, then refused
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


def open_source(path: Path, size: int) -> int:
    """A piece, open for reading. Raises Damaged unless it is a file of that many bytes."""
    try:
        fd = open_file(path)
    except OSError as error:
        raise Damaged(f"cannot read {path}: {error.strerror}", hint=DAMAGED) from error
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_size != size:
        os.close(fd)
        raise Damaged(f"{path} has {info.st_size} bytes, it had {size}", hint=DAMAGED)
    return fd


def copy_range(reader: int, writer: int, start: int, end: int) -> bool:
    """Copy bytes of a file to where another one stands, shared if their file system can do so.

    False if the first file ends too early. Raises OSError.
    """
    while start < end:
        length = min(_CHUNK, end - start)
        try:
            done = os.copy_file_range(reader, writer, length, start)
        except OSError as error:
            # Another file system, or one that cannot do it.
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            done = os.sendfile(writer, reader, start, length)
        if not done:
            return False
        start += done
    return True


def _renamed(path: Path, target: Path) -> bool:
    """Whether the two are on one file system: then the file has got its new name."""
    try:
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def _copy(path: Path, piece: Piece, target: Path) -> None:
    reader = open_file(path)
    try:
        writer = _create(target, piece.size)
        try:
            _copy_sparse(reader, writer, piece.start, piece.start + piece.size, 0)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _join(parts: Sequence[Path], target: Path) -> None:
    writer = _create(target, 0)
    try:
        end = 0
        for path in parts:
            reader = open_file(path)
            try:
                size = os.fstat(reader).st_size
                os.ftruncate(writer, end + size)
                _copy_sparse(reader, writer, 0, size, end)
            finally:
                os.close(reader)
            end += size
    finally:
        os.close(writer)


def _create(path: Path, size: int) -> int:
    writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.ftruncate(writer, size)
    return writer


def _copy_sparse(reader: int, writer: int, start: int, end: int, at: int) -> None:
    """Copy bytes from `start` to `end`, but for holes, to the place `at` of another file."""
    for data, hole in _data(reader, start, end):
        os.lseek(writer, at + data - start, os.SEEK_SET)
        if not copy_range(reader, writer, data, hole):
            raise OSError(errno.ENODATA, "a pages file has become shorter")


def _data(reader: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where a file has data, from `start` to `end`."""
    while start < end:
        try:
            data = os.lseek(reader, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # nothing but a hole from here to the end
        hole = min(os.lseek(reader, data, os.SEEK_HOLE), end)
        if data < end:
            yield data, hole
        start = hole
