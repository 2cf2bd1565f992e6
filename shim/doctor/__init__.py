"""`thaw doctor`: whether this node can do what Thaw needs. One table of checks, one line for each.

A check is a function from the node to its verdicts, usually one. What it raises counts as "no":
nothing that is wrong with a node may keep the other lines from being printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shim.doctor import (
    cache,
    gpu,
    gpu_memory,
    gpu_storage,
    handler,
    kernel,
    network,
    programs,
    resources,
    storage,
)
from shim.doctor.node import Node
from shim.doctor.verdict import ABSENT, BAD, OK, Verdict, bad
from shim.errors import ThawError

REQUIRED, RECOMMENDED, OPTIONAL = "required", "recommended", "optional"

__all__ = [
    "ABSENT",
    "BAD",
    "CHECKS",
    "OK",
    "OPTIONAL",
    "RECOMMENDED",
    "REQUIRED",
    "Check",
    "Finding",
    "Node",
    "examine",
    "fit",
]


class Check(NamedTuple):
    """One line of the table."""

    name: str
    grade: str
    ask: Callable[[Node], Iterable[Verdict]]


@dataclass(frozen=True)
class Finding:
    """One verdict, with the check that it comes from."""

    check: str
    grade: str
    state: str  # OK, BAD or ABSENT
    said: str
    fix: str
    subject: str


CHECKS = (
    Check("root", REQUIRED, programs.root),
    Check("configuration", REQUIRED, storage.configuration),
    Check("kernel", REQUIRED, kernel.features),
    Check("criu", REQUIRED, programs.criu),
    Check("criu check", REQUIRED, programs.criu_check),
    Check("network lock", REQUIRED, programs.network_lock),
    Check("network hold", REQUIRED, network.hold),
    Check("network hook", REQUIRED, network.hook),
    Check("runc", REQUIRED, programs.runc),
    Check("containerd", REQUIRED, handler.daemon),
    Check("handler", REQUIRED, handler.handler),
    Check("shim", REQUIRED, handler.shim),
    Check("cgroups", REQUIRED, handler.cgroups),
    Check("stores", REQUIRED, storage.folders),
    Check("hard links", RECOMMENDED, storage.links),
    Check("direct I/O", RECOMMENDED, storage.direct),
    Check("criu cache", RECOMMENDED, programs.criu_cache),
    Check("space", RECOMMENDED, storage.space),
    Check("state", RECOMMENDED, storage.state),
    Check("memory", RECOMMENDED, resources.memory),
    Check("huge pages", RECOMMENDED, resources.huge_pages),
    Check("limits", RECOMMENDED, resources.limits),
    Check("audit log", RECOMMENDED, storage.audit),
    Check("credentials", RECOMMENDED, storage.credentials),
    Check("GPU", OPTIONAL, gpu.gpu),
    Check("GPU memory", OPTIONAL, gpu_memory.memory),
    Check("GPU storage", OPTIONAL, gpu_storage.storage),
    Check("cache", OPTIONAL, cache.cache),
)


def examine(node: Node, checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """All findings, in the order of the table."""
    for check in checks:
        for verdict in _answers(check, node):
            yield Finding(
                check.name, check.grade, verdict.state, verdict.said, verdict.fix, verdict.subject
            )


def fit(findings: Iterable[Finding]) -> bool:
    """Whether nothing that is required is missing."""
    return not any(f.grade == REQUIRED and f.state == BAD for f in findings)


def _answers(check: Check, node: Node) -> Iterator[Verdict]:
    try:
        yield from check.ask(node)
    except ThawError as error:
        yield bad(error.message, error.hint or f"see `{check.name}` in README.md")
    except (OSError, ValueError) as error:
        yield bad(str(error), f"{check.name} could not be looked at: is this the node itself?")
