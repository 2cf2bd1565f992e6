"""Pods' network namespaces and one for everybody else, joined by links as CNI makes them."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from shim.namespaces import inside

_T = TypeVar("_T")
_count = itertools.count()


@dataclass(frozen=True)
class Namespace:
    """A named namespace; of a pod: its addresses, on eth0."""

    name: str
    address4: str
    address6: str

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    def within(self, call: Callable[[], _T]) -> _T:
        return inside(self.path, "net", call)

    def ip(self, *words: str) -> str:
        argv = ["ip", "-n", self.name, *words]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


class Network:
    """Namespaces of pods, each linked to `outside`, whose first hop is .1 and ::1 of its subnet."""

    def __init__(self) -> None:
        self._prefix = f"thaw-{os.getpid()}-{next(_count)}"
        self._made: list[str] = []
        self.pods: dict[int, Namespace] = {}  # by number
        self.outside = Namespace(f"{self._prefix}-out", "10.99.0.1", "fd99::1")

    def __enter__(self) -> Self:
        self._add(self.outside.name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in self._made:
            subprocess.run(["ip", "netns", "del", name], check=False)

    def pod(self, number: int, *, dad: bool = False, up: bool = True) -> Namespace:
        """A pod with 10.99.NUMBER.2 and fd99:NUMBER::2, and routes through its subnet's first."""
        made = Namespace(f"{self._prefix}-{number}", f"10.99.{number}.2", f"fd99:{number}::2")
        self._add(made.name)
        out, pod, link = self.outside.name, made.name, f"pod{number}"
        nodad = "" if dad else "nodad"
        self._batch(f"link add {link} netns {out} type veth peer name eth0 netns {pod}")
        self.outside.ip("link", "set", link, "up")
        self.outside.ip("addr", "add", f"10.99.{number}.1/24", "dev", link)
        self.outside.ip("addr", "add", f"fd99:{number}::1/64", "dev", link, "nodad")
        commands = [
            f"addr add {made.address4}/24 dev eth0",
            f"addr add {made.address6}/64 dev eth0 {nodad}",
            "link set lo up",
        ]
        if up:
            commands += [
                "link set eth0 up",
                f"route add default via 10.99.{number}.1",
                f"-6 route add default via fd99:{number}::1",
            ]
        self._batch(*commands, namespace=pod)
        self.pods[number] = made
        return made

    def _add(self, name: str) -> None:
        self._batch(f"netns add {name}")
        self._made.append(name)

    def _batch(self, *commands: str, namespace: str = "") -> None:
        for command in commands:
            argv = ["ip", *(("-n", namespace) if namespace else ()), *command.split()]
            subprocess.run(argv, check=True)
