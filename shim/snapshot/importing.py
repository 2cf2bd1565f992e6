"""Snapshots from files that anybody can have made, into a store.

An OCI image layout comes as a folder or as one tar, in whatever order: every blob is hashed while
it is written, none is believed before, and the draft goes if anything is wrong. Kubelet's
checkpoint archives are in kubelet.py.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from shim.errors import Damaged, Unfit
from shim.snapshot.artifact import BLOBS, lay_out
from shim.snapshot.config import LARGEST, parse_json
from shim.snapshot.manifest import (
    KINDS,
    LARGEST_MANIFEST,
    MANIFEST,
    MOST_LAYERS,
    SNAPSHOT,
    Manifest,
)
from shim.snapshot.parts import write_all
from shim.snapshot.tar import Kind, members
from shim.snapshot.tree import CREATE, open_file

Progress = Callable[[int], None]
Chunks = Iterable[bytes]

HINT = "it is no snapshot of Thaw, or somebody has changed it"
_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})", re.ASCII)
_CHUNK = 1 << 20
_LARGEST_BLOB = max(LARGEST, *(kind.largest for kind in KINDS))
_LARGEST_INDEX = 1 << 20
_REST = 16 << 20  # bytes behind the end of a tar that a pipe may bring


class Stream:
    """A tar as it comes out of a descriptor: nothing is read twice."""

    size = None

    def __init__(self, reader: int, progress: Progress = lambda _: None) -> None:
        self._reader = reader
        self._progress = progress
        self._at = 0

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes from there, which is not before what was read."""
        for _ in self.chunks(self._at, offset - self._at):
            pass
        return b"".join(self.chunks(offset, length)) if self._at == offset else b""

    def chunks(self, offset: int, length: int) -> Iterator[bytes]:
        """The same in pieces; fewer bytes if the stream ends."""
        assert offset == self._at, "a stream only goes on"
        while length:
            data = os.read(self._reader, min(length, _CHUNK))
            if not data:
                return
            self._at += len(data)
            length -= len(data)
            self._progress(len(data))
            yield data

    def drain(self) -> None:
        """Read what is behind the end: whoever writes it need not find that nobody reads."""
        for _ in self.chunks(self._at, _REST):
            pass


def files_of(stream: Stream, where: str) -> Iterator[tuple[str, int, Chunks]]:
    """The plain files in a tar: name, bytes, content. What is not taken of that is skipped.

    Raises Unfit at anything but folders and plain files, Damaged at what is no tar.
    """
    for member in members(stream, where):
        name = os.fsdecode(member.path)
        if member.kind is Kind.FOLDER:
            continue
        if member.kind is not Kind.FILE or member.regions is not None:
            raise Unfit(f"{where}: {name!a} is no plain file", hint=HINT)
        yield (
            name,
            member.size,
            _exactly(stream.chunks(member.start, member.size), member.size, where),
        )
    stream.drain()


def _exactly(chunks: Chunks, size: int, where: str) -> Iterator[bytes]:
    for data in chunks:
        size -= len(data)
        yield data
    if size:
        raise Damaged(f"{where}: cut off", hint=HINT)


def write_new(path: Path, chunks: Chunks) -> str:
    """Write a new file and answer its SHA-256."""
    sha256 = hashlib.sha256()
    with open(os.open(path, CREATE, 0o600), "wb", buffering=0) as file:
        for data in chunks:
            sha256.update(data)
            write_all(file.fileno(), data)
    return sha256.hexdigest()


class Layout:
    """An image layout that is gathered in a draft's folder."""

    def __init__(self, folder: Path, where: str) -> None:
        self._where = where
        self._folder = folder
        self._blobs = folder / BLOBS
        self._blobs.mkdir(mode=0o700, parents=True)
        self._found: dict[str, int] = {}
        self._manifest: tuple[str, int] | None = None
        self._wanted: dict[str, int] | None = None

    def take(self, name: str, size: int, chunks: Chunks) -> None:
        """One file of it. Raises Unfit and Damaged."""
        blob = _BLOB.fullmatch(name)
        if name == "oci-layout":
            self._check_version(self._small(name, size, chunks))
        elif name == "index.json" and self._manifest is None:
            self._manifest = _only_manifest(self._small(name, size, chunks), self._where)
        elif blob:
            self._take_blob(blob[1], size, chunks)
        else:
            raise Unfit(f"{self._where}: {name!a} is no part of an image layout", hint=HINT)
        self._look()

    def finish(self) -> str:
        """Make a snapshot of all; answers the manifest's digest. Raises Unfit and Damaged."""
        if self._manifest is None:
            raise Unfit(f"{self._where}: there is no index.json", hint=HINT)
        if self._wanted is None:
            raise Damaged(f"{self._where}: blob {self._manifest[0]} is missing", hint=HINT)
        for digits in sorted(self._wanted.keys() - self._found.keys()):
            raise Damaged(f"{self._where}: blob {digits} is missing", hint=HINT)
        lay_out(self._folder, self._read_manifest(self._manifest[0]))
        return f"sha256:{self._manifest[0]}"

    @property
    def manifest(self) -> tuple[str, int] | None:
        """The manifest's digits and size, once the index is known."""
        return self._manifest

    @property
    def wanted(self) -> dict[str, int]:
        """All blobs, digits → bytes, once the manifest is known."""
        return self._wanted or {}

    def _small(self, name: str, size: int, chunks: Chunks) -> bytes:
        if size > _LARGEST_INDEX:
            raise Damaged(f"{self._where}: {name} has {size} bytes", hint=HINT)
        return b"".join(chunks)

    def _check_version(self, text: bytes) -> None:
        document = parse_json(text, f"{self._where}: oci-layout")
        version = document.get("imageLayoutVersion") if isinstance(document, dict) else None
        if not isinstance(version, str) or not version.startswith("1."):
            raise Unfit(f"{self._where}: it is an image layout of another version", hint=HINT)

    def _take_blob(self, digits: str, size: int, chunks: Chunks) -> None:
        wanted = size if self._wanted is None else self._wanted.get(digits)
        if wanted != size or size > _LARGEST_BLOB or digits in self._found:
            raise Damaged(
                f"{self._where}: a blob {digits} of {size} bytes is not wanted", hint=HINT
            )
        if len(self._found) > MOST_LAYERS + 1:
            raise Unfit(f"{self._where}: there are too many blobs", hint=HINT)
        if write_new(self._blobs / digits, chunks) != digits:
            raise Damaged(f"{self._where}: blob {digits} is not what it was", hint=HINT)
        self._found[digits] = size

    def _look(self) -> None:
        """Find out what is wanted, as soon as that can be said."""
        if self._wanted is not None or self._manifest is None:
            return
        digits, size = self._manifest
        if digits not in self._found:
            return
        if self._found[digits] != size or size > LARGEST_MANIFEST:
            raise Damaged(f"{self._where}: the manifest has {self._found[digits]} bytes", hint=HINT)
        manifest = Manifest.parse(self._read_manifest(digits), f"{self._where}: manifest")
        self._wanted = {digits: size} | {blob.hex: blob.size for blob in manifest.blobs}
        for found, length in self._found.items():
            if self._wanted.get(found) != length:
                raise Damaged(f"{self._where}: blob {found} does not belong there", hint=HINT)

    def _read_manifest(self, digits: str) -> bytes:
        return (self._blobs / digits).read_bytes()


def take_tar(layout: Layout, files: Iterable[tuple[str, int, Chunks]]) -> str:
    """A layout from the files of a tar; the manifest's digest."""
    for name, size, chunks in files:
        layout.take(name, size, chunks)
    return layout.finish()


def take_folder(layout: Layout, folder: Path, progress: Progress) -> str:
    """A layout from a folder, of which only what the manifest lists is read; its digest."""
    for name in ("oci-layout", "index.json"):
        _take_file(layout, folder, name, progress)
    assert layout.manifest is not None
    _take_file(layout, folder, f"{BLOBS}/{layout.manifest[0]}", progress)
    for digits in sorted(layout.wanted.keys() - {layout.manifest[0]}):
        _take_file(layout, folder, f"{BLOBS}/{digits}", progress)
    return layout.finish()


def _take_file(layout: Layout, folder: Path, name: str, progress: Progress) -> None:
    try:
        fd = open_file(folder / name)
    except OSError as error:
        raise Unfit(f"cannot read {folder / name}: {error.strerror}", hint=HINT) from error
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise Unfit(f"{folder / name} is no plain file", hint=HINT)
        stream = Stream(fd, progress)
        chunks = _exactly(stream.chunks(0, info.st_size), info.st_size, str(folder / name))
        layout.take(name, info.st_size, chunks)
    finally:
        os.close(fd)


def is_layout(name: str) -> bool:
    """Whether a file of that name begins an image layout."""
    return name in ("oci-layout", "index.json") or _BLOB.fullmatch(name) is not None


def _only_manifest(text: bytes, where: str) -> tuple[str, int]:
    """The digits and the size of the one manifest that can be a snapshot's."""
    document = parse_json(text, f"{where}: index.json")
    listed = document.get("manifests") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise Damaged(f"{where}: index.json lists no manifests", hint=HINT)
    found = [item for item in listed if item.get("mediaType") == MANIFEST]
    found = [item for item in found if item.get("artifactType") == SNAPSHOT] or found
    if len({str(item.get("digest")) for item in found}) != 1:
        raise Unfit(
            f"{where}: index.json lists {len(found)} manifests",
            hint="an image layout with one snapshot in it is wanted",
        )
    return _digest_of(found[0], where)


def _digest_of(item: dict[str, Any], where: str) -> tuple[str, int]:
    digest, size = item.get("digest"), item.get("size")
    good = isinstance(digest, str) and _BLOB.fullmatch(f"blobs/sha256/{digest[7:]}")
    if not good or not str(digest).startswith("sha256:") or type(size) is not int or size < 0:
        raise Damaged(f"{where}: index.json has a bad digest or size", hint=HINT)
    return str(digest)[7:], size
