"""Which GPUs a container has been given: what its OCI spec says, against what NVML says.

Device nodes are the best evidence, and where there are any they are all of it: CDI (containerd from
1.7 on, NVIDIA's runtime in its newer mode) writes them into the spec. Otherwise they are made while
the container is created: by the hook of `ctr run --gpus`, which says for which, or by NVIDIA's
runtime, which goes by mounts below /var/run/nvidia-container-devices, then CDI's annotations, then
NVIDIA_VISIBLE_DEVICES. runc heeds none of these three, and images made from CUDA's say
`NVIDIA_VISIBLE_DEVICES=all` whatever they are run with. Rules of the devices cgroup are no
evidence: they allow what need not be there.

The forms are those of the NVIDIA Container Toolkit's documentation. The daemon asks the functions
that need no NVML, so nothing is imported here that is outside of its import budget.
"""

from __future__ import annotations

import os

from shim.errors import Unfit
from shim.gpu.hooks import CLI, every, names_nvidia

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from shim.gpu.nvml import Gpu

VISIBLE = "NVIDIA_VISIBLE_DEVICES"
LISTED = "/proc/driver/nvidia/gpus"  # a folder for each GPU, by its place on the bus
CDI = "cdi.k8s.io/"  # annotations: any name below this, a list of VENDOR/CLASS=NAME
_MOUNTS = "/var/run/nvidia-container-devices/"
_VENDOR = "nvidia.com"  # or below it: runtime.nvidia.com, k8s.device-plugin.nvidia.com
_NODE = "/dev/nvidia"
_MAJOR = 195  # NVIDIA's, of Linux's own list; minors 254 and 255 are no GPUs
_NO_GPU = 254
_LEAST = 8  # digits of a UUID by which one GPU is told from another


class _Name:
    """What some place in the spec calls a GPU, or several."""

    __slots__ = ("place", "word")

    def __init__(self, word: str, place: str) -> None:
        self.word = word
        self.place = place


def has_gpus(spec: Mapping[str, Any], runtime: str = "") -> bool:
    """Whether it has been given any, as far as the spec says without NVML; `runtime`: see given."""
    return bool(_nodes(spec) or _names(spec, runtime))


def may_be_several(spec: Mapping[str, Any], runtime: str = "") -> bool:
    """Whether it has been given more than one GPU, as far as the spec says without NVML.

    `all` are as many as the driver lists; where it does not, there may be several.
    """
    nodes = {minor for minor, _ in _nodes(spec)}
    if nodes:
        return len(nodes) > 1
    words = {name.word for name in _names(spec, runtime)}
    return len(words) > 1 or ("all" in words and _on_node() != 1)


def _on_node() -> int:
    """How many the driver lists; 0: it does not."""
    try:
        return len(os.listdir(LISTED))
    except OSError:
        return 0


def is_nvidias(spec: Mapping[str, Any], runtime: str) -> bool:
    """Whether NVIDIA's runtime creates the container: `runtime` itself, or a hook that it left."""
    paths = [hook.get("path", "") for hook in every(spec)]
    return any(map(names_nvidia, (runtime, *paths)))


def given(spec: Mapping[str, Any], gpus: Sequence[Gpu], runtime: str = "") -> list[Gpu]:
    """Those of `gpus` (all of this machine's) that the container has, by kind, then by index.

    `runtime`: the OCI runtime, as the configuration has it in BinaryName. Raises Unfit naming what
    cannot be told: a GPU that NVML does not know, a part of one (MIG), a word that is none.
    """
    nodes = _nodes(spec)
    if nodes:
        chosen = [_by_minor(minor, place, gpus) for minor, place in nodes]
    else:
        names = _names(spec, runtime)
        chosen = [gpu for name in names for gpu in _by_name(name, gpus)]
    return sorted(set(chosen), key=place_of)


def place_of(gpu: Gpu) -> tuple[str, int, str, int]:
    """What GPUs are sorted by, so that those of one kind stand together: see rules.py."""
    return gpu.model, gpu.memory, gpu.driver, gpu.index


def _nodes(spec: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Minor numbers of GPUs' device nodes, each with where it is from."""
    found = []
    for device in (spec.get("linux") or {}).get("devices") or ():
        path = device.get("path", "")
        # A node can have any path inside; what it leads to are its numbers.
        ours = device.get("type") == "c" and device.get("major") == _MAJOR
        minor = device.get("minor") if ours else _number(path)
        if minor is not None and minor < _NO_GPU:
            found.append((minor, f"device {path}"))
    for mount in spec.get("mounts") or ():
        inside = os.path.normpath(mount.get("destination", ""))
        minor = _number(mount.get("source", ""))
        minor = _number(inside) if minor is None else minor
        if minor is not None and minor < _NO_GPU:
            found.append((minor, f"mount {inside}"))
    return found


def _number(path: str) -> int | None:
    """The N of /dev/nvidiaN, also below another folder: the driver's container has its own /dev."""
    _, found, number = path.rpartition(_NODE)
    return int(number) if found and _is_number(number) else None


def _names(spec: Mapping[str, Any], runtime: str) -> list[_Name]:
    """From the first place that names any."""
    heeded = is_nvidias(spec, runtime)
    places = (_from_mounts, _from_annotations, _from_environment) if heeded else ()
    for place in (_from_hooks, *places):
        names = list(place(spec))
        if names:
            return names
    return []


def _from_hooks(spec: Mapping[str, Any]) -> Iterator[_Name]:
    """containerd's own client calls NVIDIA's tool by a hook: --device=NAME,NAME among its words."""
    for hook in every(spec):
        args = hook.get("args") or ()
        if CLI in map(os.path.basename, args):
            for arg in args:
                key, _, names = arg.partition("=")
                if key == "--device":
                    yield from (_Name(word, f"hook {CLI}") for word in _words(names))


def _from_mounts(spec: Mapping[str, Any]) -> Iterator[_Name]:
    for mount in spec.get("mounts") or ():
        inside = os.path.normpath(mount.get("destination", ""))
        if not inside.startswith(_MOUNTS) or mount.get("source") != "/dev/null":
            continue
        kind, slash, rest = inside.removeprefix(_MOUNTS).partition("/")
        if not slash:
            yield _Name(kind, f"mount {inside}")
        elif kind == "cdi":  # VENDOR/CLASS/NAME, or VENDOR/CLASS=NAME
            vendor, _, name = rest.partition("/")
            qualified = name if "=" in name else name.replace("/", "=", 1)
            yield from _qualified(f"{vendor}/{qualified}", f"mount {inside}")


def _from_annotations(spec: Mapping[str, Any]) -> Iterator[_Name]:
    for key, names in sorted((spec.get("annotations") or {}).items()):
        if key.startswith(CDI):
            for name in _words(names):
                yield from _qualified(name, f"annotation {key}")


def _from_environment(spec: Mapping[str, Any]) -> Iterator[_Name]:
    said = ""
    for entry in (spec.get("process") or {}).get("env") or ():
        name, _, text = entry.partition("=")
        if name == VISIBLE:
            said = text.strip()  # of several the last one counts
    if said in ("", "void", "none"):
        return
    for word in _words(said):
        if "=" in word:
            yield from _qualified(word, VISIBLE)
        else:
            yield _Name(word, VISIBLE)


def _words(text: str) -> list[str]:
    return [word for word in map(str.strip, text.split(",")) if word]


def _qualified(name: str, place: str) -> Iterator[_Name]:
    """A name by CDI's rules. Others than GPUs (nvidia.com/gds, amd.com/gpu) are no matter here."""
    kind, _, device = name.partition("=")
    vendor, _, group = kind.partition("/")
    if vendor != _VENDOR and not vendor.endswith(f".{_VENDOR}"):
        return
    if group == "mig":
        yield _Name(f"mig {device}", place)
    elif group == "gpu":
        number = device.removeprefix("gpu")  # one way in which nvidia-ctk can name them
        yield _Name(number if _is_number(number) else device, place)


def _by_minor(minor: int, place: str, gpus: Sequence[Gpu]) -> Gpu:
    for gpu in gpus:
        if gpu.minor == minor:
            return gpu
    raise _unknown(f"{_NODE}{minor}", place, gpus)


def _by_name(name: _Name, gpus: Sequence[Gpu]) -> list[Gpu]:
    word = name.word
    if word == "all":
        return list(gpus)
    if _is_number(word):
        found = [gpu for gpu in gpus if gpu.index == int(word)]
    elif word.startswith("GPU-") and len(word) >= len("GPU-") + _LEAST:
        found = [gpu for gpu in gpus if gpu.uuid.lower().startswith(word.lower())]
    elif word.startswith(("MIG-", "mig")) or all(map(_is_number, word.split(":"))):
        raise _mig(word, name.place)
    else:
        raise Unfit(
            f"{name.place}: {word[:80]!a} is no GPU",
            hint="GPUs are named by index, by UUID (GPU-…) or as all",
        )
    if not found:
        raise _unknown(word, name.place, gpus)
    if len(found) > 1:
        raise Unfit(
            f"{name.place}: {word[:80]!a} can be any of {len(found)} GPUs", hint="write it out"
        )
    return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 6


def _unknown(what: str, place: str, gpus: Sequence[Gpu]) -> Unfit:
    known = " ".join(str(gpu.index) for gpu in gpus) or "none"
    return Unfit(
        f"{place}: no GPU {what[:80]!a} here (NVML knows: {known})",
        hint="see what nvidia-smi -L says on the node",
    )


def _mig(word: str, place: str) -> Unfit:
    return Unfit(
        f"{place}: {word[:80]!a} is a part of a GPU (MIG), which cannot be checkpointed",
        hint="give the container whole GPUs",
    )
