"""Whether GPUs can take up what was saved from others, and which takes up whose: pure but for one
wait, for memory that its last owner is still giving back.

GPUs stand in one order everywhere, that of given(), so that lists can be parallel: by kind, then by
index. A snapshot's UUIDs, and the bytes that it needs on each, are in the order of its kinds, each
as often as it counts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from shim.errors import Unfit
from shim.gpu.given import place_of
from shim.gpu.nvml import Gpu, uuid_bytes
from shim.snapshot.config import Gpu as Kind

GIB = 1 << 30
_PAUSE = 0.05  # seconds between two looks at a GPU's memory
_SHOWN = 8  # pids


def kinds(gpus: Iterable[Gpu]) -> list[Kind]:
    """How many there are of which kind, in that order."""
    groups = groupby(sorted(gpus, key=place_of), key=lambda gpu: place_of(gpu)[:3])
    return [Kind(*kind, count=len(list(group))) for kind, group in groups]


def unsupported(gpus: Iterable[Gpu]) -> Iterator[str]:
    """Why no process on them can be checkpointed, nor restored there."""
    for gpu in gpus:
        if gpu.mig:
            yield f"{gpu} is divided into instances (MIG)"
        if gpu.virtual:
            yield f"{gpu} is a virtual one (vGPU)"


def reasons(
    made_with: Sequence[Kind], here: Sequence[Gpu], needed: Sequence[int] = ()
) -> Iterator[str]:
    """Every reason why the GPUs of the container, `here`, cannot take up those of a snapshot.

    `needed`: bytes on each of the snapshot's; empty: not known.
    """
    wanted = _models(made_with)
    if not wanted:
        return
    yield from unsupported(here)
    yield from _too_few(wanted, here)
    yield from _older(made_with, here)
    if needed and len(needed) != len(wanted):
        yield f"it says what it needs on {len(needed)} GPUs, and was made with {len(wanted)}"
    else:
        yield from _too_small(wanted, here, needed)


def successors(
    old: Sequence[str], here: Sequence[Gpu], made_with: Sequence[Kind] = ()
) -> list[Gpu]:
    """Which of `here` takes up each of the GPUs with the UUIDs `old`: itself if it is there.

    The driver takes a GPU of the same model only. `made_with` says of which each was; without it,
    all are taken to be of the one model that is here. Raises Unfit.
    """
    models = _models(made_with) or [_only_model(here)] * len(old)
    if len(models) != len(old) or len(set(old)) != len(old):
        raise Unfit(f"{len(old)} UUIDs of {len(models)} GPUs, {len(set(old))} of them different")
    free = {gpu.uuid: gpu for gpu in sorted(here, key=place_of)}
    itself = {uuid: free.pop(uuid) for uuid in old if uuid in free}
    return [
        itself[uuid] if uuid in itself else _take(free, uuid, model)
        for uuid, model in zip(old, models, strict=True)
    ]


def pairs(old: Sequence[str], new: Sequence[Gpu]) -> list[tuple[str, str]]:
    """Old and new UUIDs for the driver, which wants every GPU listed, or none if none has moved.

    (cuCheckpointProcessRestore in NVIDIA's reference of the driver API.) Raises Unfit for what
    could not be told to it.
    """
    found = [(uuid, gpu.uuid) for uuid, gpu in zip(old, new, strict=True)]
    if all(then == now for then, now in found):
        return []
    for then, _ in found:
        uuid_bytes(then)
    return found


def wait_for_memory(
    needed: Mapping[str, int],
    gpus: Callable[[], Sequence[Gpu]],
    seconds: float,
    who: Callable[[], Sequence[Gpu]] | None = None,
) -> None:
    """Return once every GPU has as many bytes free as `needed` says of its UUID.

    `gpus` is asked anew each time: memory comes back a while after its owner has ended. Raises
    Unfit after `seconds`, or at once if waiting cannot help; it says who has the memory, as `who`
    has it, if `gpus` need not.
    """
    end = time.monotonic() + seconds
    while said := _lack(needed, gpus()):
        left = end - time.monotonic()
        if left <= 0:
            said = _lack(needed, who()) if who is not None else said
            if not said:
                return
            raise Unfit(
                f"{said} (after {seconds:g} s)",
                hint="end what else runs there, or give the container another GPU",
            )
        time.sleep(min(_PAUSE, left))


def _lack(needed: Mapping[str, int], here: Sequence[Gpu]) -> str:
    now = {gpu.uuid: gpu for gpu in here}
    lacking = [_lacking(now.get(uuid), uuid, size) for uuid, size in needed.items()]
    return "; ".join(text for text in lacking if text)


def _models(made_with: Iterable[Kind]) -> list[str]:
    return [kind.model for kind in made_with for _ in range(kind.count)]


def _too_few(wanted: Sequence[str], here: Sequence[Gpu]) -> Iterator[str]:
    have = Counter(gpu.model for gpu in here)
    if have:
        found = ", ".join(f"{count} {model}" for model, count in sorted(have.items()))
    else:
        found = "none"
    for model, count in sorted(Counter(wanted).items()):
        if have[model] < count:
            yield f"made with GPUs: {count} {model}; the container has {found}"


def _older(made_with: Sequence[Kind], here: Sequence[Gpu]) -> Iterator[str]:
    """The state that a driver saves is for that branch and, at best, for newer ones."""
    then = max((kind.driver for kind in made_with), key=_branch)
    for driver in sorted({gpu.driver for gpu in here}):
        if _branch(driver) < _branch(then):
            yield f"made with driver {then}, this is {driver or 'unknown'}: an older branch"


def _branch(driver: str) -> int:
    """580 of 580.159.04; 0 if that is no version."""
    number = driver.partition(".")[0]
    return int(number) if number.isascii() and number.isdecimal() else 0


def _too_small(wanted: Sequence[str], here: Sequence[Gpu], needed: Sequence[int]) -> Iterator[str]:
    """Each model on its own, the largest need against the largest GPU."""
    for model in sorted(set(wanted)):
        sizes = [size for name, size in zip(wanted, needed, strict=False) if name == model]
        mine = sorted((gpu for gpu in here if gpu.model == model), key=lambda gpu: -gpu.memory)
        for size, gpu in zip(sorted(sizes, reverse=True), mine, strict=False):
            if gpu.memory < size:
                yield _small(gpu, size)


def _small(gpu: Gpu, size: int) -> str:
    if not gpu.memory:
        return f"{gpu} does not say how much memory it has"
    return f"{gpu} has {_gib(gpu.memory)} of memory, {_gib(size)} are needed"


def _only_model(here: Sequence[Gpu]) -> str:
    found = sorted({gpu.model for gpu in here})
    if len(found) > 1:
        raise Unfit(f"the container has GPUs of several models: {', '.join(found)}")
    return found[0] if found else "unknown"


def _take(free: dict[str, Gpu], uuid: str, model: str) -> Gpu:
    for gpu in free.values():
        if gpu.model == model:
            return free.pop(gpu.uuid)
    raise Unfit(f"no {model} is left here to take up {uuid[:80]!a}")


def _lacking(gpu: Gpu | None, uuid: str, size: int) -> str:
    """What is missing, "" if nothing is. Raises Unfit if it never will be there."""
    if gpu is None:
        raise Unfit(f"no GPU {uuid[:80]!a} any longer", hint="see what nvidia-smi says on the node")
    if gpu.memory < size:
        raise Unfit(_small(gpu, size), hint="give the container a larger GPU")
    if gpu.free >= size:
        return ""
    pids = " ".join(map(str, gpu.processes[:_SHOWN])) or "unknown"
    return f"{gpu} has {_gib(gpu.free)} free, {_gib(size)} are needed; its processes: {pids}"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
