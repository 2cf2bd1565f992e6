"""What is run on the GPU: how it is started, what it is asked, and what of its answer must stay."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu.asking import ask, wait_until_healthy

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
    writable: tuple[Path, ...] = ()  # and those in which it may write
    shared_memory: str = ""  # size of its /dev/shm, as mount(8) takes it; "": what pods have
    annotations: Mapping[str, str] = field(default_factory=dict)  # of its pod
    starting: float = 240.0  # seconds until it is warm, at most
    body: Mapping[str, Any] | None = None  # of a POST; its `max_tokens` is 1 in the first question

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


def transformers(shape: str, tokens: int, device: str = "cuda") -> Subject:
    """model.py, of that shape."""
    words = ("-m", "gpu.model", shape, str(PORT), device)
    first, whole = "/check?tokens=1", f"/check?tokens={tokens}"
    return Subject(f"transformers-{shape.lower()}", words, ("tokens",), first, whole)


def compare(who: str, subject: Subject, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """A digest of what is the same. Raises Wrong unless all is, and the process, too."""
    differ = [name for name in subject.same if before[name] != after[name]]
    if differ:
        raise Wrong(f"{who} has another {' and another '.join(differ)} than before")
    if "answers" in before and after["answers"] <= before["answers"]:
        raise Wrong(f"{who} was started anew: it has answered {after['answers']} times")
    text = repr([before[name] for name in subject.same])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
