"""What is run on the GPU: how it is started, what it is asked, and what of its answer must stay."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpu.asking import ask, wait_until_healthy
from gpu.memory_figures import DRIVER

TESTS = Path(__file__).resolve().parents[1]
PORT = 8000


class Wrong(Exception):
    """What came back is not what was there."""


@dataclass(frozen=True)
class Subject:
    """A worker, in a container or beside it."""

    name: str  # of its snapshot too
    words: tuple[str, ...]  # of its command, after the interpreter
    same: tuple[str, ...]  # what of its answer is the same for ever
    first: str = "/check"  # the first question after a start; its answer is the first token
    whole: str = "/check"  # the second one, for all that can be compared
    port: int = PORT
    environment: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()  # more of this machine's that it needs, at their own paths
    elsewhere: Mapping[str, Path] = field(default_factory=dict)  # and at others alone
    writable: tuple[Path, ...] = ()  # and those in which it may write
    shared_memory: str = ""  # size of its /dev/shm, as mount(8) takes it; "": what pods have
    annotations: Mapping[str, str] = field(default_factory=dict)  # of its pod
    starting: float = 240.0  # seconds until it is warm, at most
    body: Mapping[str, Any] | None = None  # of a POST; its `max_tokens` is 1 in the first question

    @property
    def acts(self) -> bool:
        """Whether it is asked to be quiet for a snapshot, as nobody asks it for stock CRIU's."""
        return any("quiesce" in name for name in self.annotations)

    def wait(self, address: str, running: Callable[[], bool] = lambda: True) -> None:
        """Return when it is warm; see wait_until_healthy."""
        wait_until_healthy(address, self.port, self.starting, running=running)

    def begin(self, address: str) -> None:
        """Have the first token of it."""
        body = {**self.body, "max_tokens": 1} if self.body is not None else None
        ask(address, self.port, self.first, body)

    def answer(self, address: str) -> dict[str, Any]:
        """All that it has to say."""
        body = dict(self.body) if self.body is not None else None
        told = ask(address, self.port, self.whole, body)
        if self.body is None:
            return told
        return {"text": told["choices"][0]["text"]}


def pytorch(gib: float, device: str = "cuda", name: str = "pytorch") -> Subject:
    """worker.py, with so much on the GPU."""
    words = ("-m", "gpu.worker", str(gib), str(PORT), device)
    return Subject(f"{name}-{gib:g}g", words, ("memory", "graph"))


def transformers(shape: str, tokens: int, device: str = "cuda", cache: float = 0.0) -> Subject:
    """model.py, of that shape; with a cache of so many GiB that is all zeros."""
    words = ("-m", "gpu.model", shape, str(PORT), device, f"{cache:g}")
    name = f"transformers-{shape.lower()}"
    first, whole = "/check?tokens=1", f"/check?tokens={tokens}"
    if cache:
        return Subject(f"{name}-kv{cache:g}", words, ("tokens", "cache"), first, f"{whole}&cache=1")
    return Subject(name, words, ("tokens",), first, whole)


def everything(gib: float, cache: float, device: str, *, expandable: bool = False) -> Subject:
    """everything.py; with `expandable` PyTorch maps its memory itself, piece by piece."""
    words = ("-m", "gpu.everything", f"{gib:g}", f"{cache:g}", str(PORT), device)
    same = ("memory", "graph", "cache", "small", "streams", "pinned", "changed", "second")
    chosen = dict.fromkeys(_ALLOCATOR, "expandable_segments:True") if expandable else {}
    kind = "expandable" if expandable else "everything"
    return Subject(f"{kind}-{gib:g}g", words, same, first="/first", environment=chosen)


def jaxed(gib: float, device: str) -> Subject:
    """jax_worker.py, whose pool has some room beside its numbers."""
    words = ("-m", "gpu.jax_worker", f"{gib:g}", str(PORT))
    chosen = {
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{_pool(gib):.2f}",
        # Without a toolkit the driver compiles, where it can.
        "XLA_FLAGS": "--xla_gpu_unsafe_fallback_to_driver_on_ptxas_not_found=true",
    }
    chosen |= {"JAX_PLATFORMS": "cpu"} if device == "cpu" else {}
    toolkit = _toolkit()
    return Subject(
        f"jax-{gib:g}g",
        words,
        same=("memory", "network", "platform"),
        environment=chosen,
        elsewhere={_OPT: toolkit} if toolkit is not None else {},
    )


def by_driver(subject: Subject) -> Subject:
    """The same with all of its GPU memory left to the driver; its name says so."""
    annotations = {**subject.annotations, "thaw.dev/gpu-memory": "driver"}
    return replace(subject, name=f"{subject.name}{DRIVER}", annotations=annotations)


_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # the old name, and the new one
_OPT = "/opt/cuda"  # one of the places where XLA looks for a toolkit; JAX overrides its flag
_GPU = 79.0  # GiB of the smallest GPU that these figures are of


def _pool(gib: float) -> float:
    """Of the GPU's memory: what is computed in one go takes as much again as an array of it."""
    return min(0.9, (1.5 * gib + 1) / _GPU)


def _toolkit() -> Path | None:
    """Where CUDA's toolkit lies: the links to it in /usr/local are not in a pod."""
    found = Path(shutil.which("ptxas") or "/usr/local/cuda/bin/ptxas").resolve()
    return found.parents[1] if found.exists() else None


def compare(who: str, subject: Subject, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """A digest of what is the same. Raises Wrong unless all is, and the process, too."""
    differ = [name for name in subject.same if before[name] != after[name]]
    if differ:
        raise Wrong(f"{who} has another {' and another '.join(differ)} than before")
    if "answers" in before and after["answers"] <= before["answers"]:
        raise Wrong(f"{who} was started anew: it has answered {after['answers']} times")
    text = repr([before[name] for name in subject.same])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
