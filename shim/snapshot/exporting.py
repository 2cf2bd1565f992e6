"""A snapshot as one stream, or as CRIU's own images: for whoever has neither our store nor us.

The stream is a tar of the OCI image layout, what other tools call "oci-archive".
"""

from __future__ import annotations

import errno
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shim import spawn
from shim.errors import AlreadyExists, Damaged, Unknown
from shim.removal import remove_folder
from shim.snapshot.artifact import BLOBS, blobs_of, manifest_of
from shim.snapshot.config import DAMAGED
from shim.snapshot.manifest import MANIFEST, SNAPSHOT, Manifest
from shim.snapshot.parts import write_all
from shim.snapshot.pieces import Pieces
from shim.snapshot.replacing import sync
from shim.snapshot.snapshot import Snapshot
from shim.snapshot.tree import CREATE, open_file

REFERENCE = "org.opencontainers.image.ref.name"
_CHUNK = 4 << 20
_BLOCK = 512


def size_of_export(manifest: Manifest) -> int:
    """Bytes of all blobs, each counted once."""
    return sum(blob.size for blob in manifest.blobs)


def write_layout(
    snapshot: Snapshot, name: str, writer: int, progress: Callable[[int], None]
) -> None:
    """Write a sealed snapshot into the descriptor `writer`; holes become zeros.

    `name` is what it shall be called there. Raises Damaged if a blob is not as long as it was,
    FailedPrecondition if the snapshot is not sealed, and OSError.
    """
    text, manifest = manifest_of(snapshot)
    digest = snapshot.digest
    _put(writer, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}\n')
    _put(writer, "index.json", _index(digest, len(text), name))
    for folder in (BLOBS.parent, BLOBS):
        info = tarfile.TarInfo(str(folder))
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        write_all(writer, info.tobuf(tarfile.PAX_FORMAT))
    _put(writer, f"{BLOBS}/{digest.removeprefix('sha256:')}", text)
    paths = blobs_of(snapshot, manifest)
    for blob in manifest.blobs:
        write_all(writer, _header(f"{BLOBS}/{blob.hex}", blob.size))
        _copy(paths[blob.digest], blob.size, writer, progress)
        write_all(writer, bytes(-blob.size % _BLOCK))
    write_all(writer, bytes(2 * _BLOCK))


def write_images(snapshot: Snapshot, folder: Path, replace: bool = False) -> None:
    """Make `folder` of plain files, as `criu dump` does: for CRIU itself, and for its tools.

    Raises AlreadyExists, Damaged and OSError; the folder is not made then, and one that was there
    is there still.
    """
    if os.path.lexists(folder) and (not replace or not folder.is_dir()):
        raise taken(folder)
    draft = _hidden(folder)
    draft.mkdir(mode=0o700)
    try:
        Pieces(snapshot.pages).assemble(snapshot.criu, draft)
        for path in [path for path in draft.iterdir() if path.is_symlink()]:
            _replace_by_copy(path)
        _put_in_place(draft, folder, replace)
    except BaseException:
        remove_folder(str(draft))
        raise


def _put_in_place(draft: Path, folder: Path, replace: bool) -> None:
    """Give a folder its name. One that has the name goes once the new one has it, not before.

    (Not by replacing.py: that one sweeps beside the folder, and who knows what else is there.)
    """
    if not os.path.lexists(folder):
        draft.rename(folder)
        return
    if not replace:  # somebody else has made it meanwhile
        raise taken(folder)
    old = _hidden(folder)
    folder.rename(old)
    try:
        draft.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    remove_folder(str(old))


@contextmanager
def new_file(path: Path, replace: bool = False) -> Iterator[int]:
    """A descriptor to write `path` by; the file is there once it is whole, and only then.

    It is for nobody else to read: a worker's memory is in there. Raises AlreadyExists.
    """
    if os.path.lexists(path) and (not replace or not path.is_file()):
        raise taken(path)
    draft = _hidden(path)
    writer = os.open(draft, CREATE, 0o600)
    try:
        try:
            yield writer
            os.fsync(writer)
        finally:
            os.close(writer)
        if replace:
            draft.rename(path)
        else:
            os.link(draft, path)  # somebody else may have made it meanwhile
            draft.unlink()
        sync(path.parent)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            raise taken(path) from error
        raise


def taken(path: Path) -> AlreadyExists:
    """The error that says that something is in the way."""
    return AlreadyExists(f"{path} exists", hint="--replace writes it anew")


def _hidden(path: Path) -> Path:
    return path.parent / f".{path.name}-{os.urandom(6).hex()}"


def _index(digest: str, size: int, name: str) -> bytes:
    manifest = {
        "mediaType": MANIFEST,
        "artifactType": SNAPSHOT,
        "digest": digest,
        "size": size,
        "annotations": {REFERENCE: name},
    }
    kind = "application/vnd.oci.image.index.v1+json"
    document = {"schemaVersion": 2, "mediaType": kind, "manifests": [manifest]}
    return json.dumps(document, indent=1).encode() + b"\n"


def _put(writer: int, name: str, data: bytes) -> None:
    write_all(writer, _header(name, len(data)) + data + bytes(-len(data) % _BLOCK))


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(tarfile.PAX_FORMAT)


def _copy(path: Path, size: int, writer: int, progress: Callable[[int], None]) -> None:
    reader = open_file(path)
    try:
        if os.fstat(reader).st_size != size:
            raise Damaged(f"{path} has another size than it had", hint=DAMAGED)
        os.posix_fadvise(reader, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        at = 0
        while at < size:
            count = _send(reader, writer, at, min(_CHUNK, size - at))
            if not count:
                raise Damaged(f"{path} has become shorter", hint=DAMAGED)
            at += count
            progress(count)
    finally:
        os.close(reader)


def _send(reader: int, writer: int, at: int, count: int) -> int:
    try:
        return os.sendfile(writer, reader, at, count)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what is written to cannot do it: opened to append, say
            raise
    data = os.pread(reader, count, at)
    write_all(writer, data)
    return len(data)


def _replace_by_copy(path: Path) -> None:
    """A file with the same bytes in the place of a link, shared with it where that can be."""
    copy = path.with_name(f"{path.name}.copy")
    how = ("--dereference", "--reflink=auto", "--sparse=auto")
    argv = ["cp", *how, "-T", "--", str(path), str(copy)]
    done = spawn.run(argv, {**os.environ, "LC_ALL": "C"})
    if done.status:
        raise Unknown(f"cannot copy {path}: {done.text[-300:]}")
    copy.rename(path)
