"""Snapshots of a store that have GPU memory, made of bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace

from fakes.nvml import H100, numbered
from fakes.snapshots import CONFIG, crc32c, write
from shim.gpu.memory import index
from shim.gpu.memory.device import CHUNK
from shim.snapshot.cuda import CudaProcess, CudaState, GpuRegion
from shim.snapshot.snapshot import Snapshot
from shim.snapshot.store import Store

_EXTENT = struct.Struct("<QQIIIHH")
_BLOCK = 4 << 20  # bytes: no extent crosses a multiple of it


def saved(store: Store, name: str, regions: Sequence[bytes], gpus: Sequence[int] = ()) -> Snapshot:
    """A snapshot whose process has these regions, a piece each; without `gpus` on the first."""
    extents, pieces = b"", {}
    for number, data in enumerate(regions):
        piece = b""
        for address, stretch in _stretches(data):
            place = len(piece), len(stretch), crc32c(stretch)
            extents += _EXTENT.pack(address, *place, number, number, 0)
            piece += stretch
        pieces[f"gpu-1.img.{number:04d}"] = piece
    where = [numbered(H100, gpu).uuid for gpu in gpus or [0] * len(regions)]
    listed = [
        GpuRegion(number + 1, len(data), 0, uuid)
        for number, (data, uuid) in enumerate(zip(regions, where, strict=True))
    ]
    config = replace(
        CONFIG,
        gpu=CudaState([CudaProcess(1, [], listed)], sorted(set(where))),
        pages={**CONFIG.pages, **{file: len(data) for file, data in pieces.items()}},
    )
    with store.draft(name) as draft:
        write(draft.path, config)
        for file, data in pieces.items():
            (draft.path / "pages" / file).write_bytes(data)
        index.write(draft.path / "index", extents)
        id = draft.id
    return store.snapshot(id)


def _stretches(data: bytes) -> list[tuple[int, bytes]]:
    """What is not zero, in CHUNKs, within blocks."""
    found: list[tuple[int, bytes]] = []
    for at in range(0, len(data), CHUNK):
        chunk = data[at : at + CHUNK]
        if not any(chunk):
            continue
        if found and found[-1][0] + len(found[-1][1]) == at and at % _BLOCK:
            found[-1] = found[-1][0], found[-1][1] + chunk
        else:
            found.append((at, chunk))
    return found
