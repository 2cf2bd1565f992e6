"""A node that says whatever a test wants it to say, for the checks of `thaw doctor`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from shim.config import Config
from shim.doctor.daemon import Daemon
from shim.doctor.node import Node
from shim.doctor.verdict import Verdict

PROC = {
    "/proc/sys/kernel/osrelease": "6.1.0",
    "/proc/sys/vm/max_map_count": "65530",
    "/proc/sys/fs/nr_open": "1048576",
    "/proc/meminfo": "MemTotal: 33554432 kB\nMemAvailable: 16777216 kB",
    "/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
}
RUNTIMES = {
    "runc": {"runtimeType": "io.containerd.runc.v2", "options": {"SystemdCgroup": False}},
    "thaw": {"runtimeType": "io.containerd.thaw.v1", "PodAnnotations": ["thaw.dev/*"]},
}


class FakeDaemon(Daemon):
    """A containerd with some handlers; None: it has no CRI."""

    def __init__(self, runtimes: dict[str, Any] | None, path: Iterable[Path] = ()) -> None:
        self.address = "/run/fake.sock"
        self.pid = 1
        self._runtimes = runtimes
        self._path = [str(folder) for folder in path]

    def version(self) -> str:
        return "2.1.9"

    def cri(self) -> dict[str, Any]:
        if self._runtimes is None:
            raise OSError(0, "no CRI here")
        return {"containerd": {"runtimes": self._runtimes}}

    def search_path(self) -> list[str]:
        return self._path


class FakeNode(Node):
    """A node below `root`. `answers`: the words of a command → its exit status and output.

    A program that has no answer is not there. `settings` are the configuration's.
    """

    def __init__(
        self,
        root: Path,
        answers: dict[str, tuple[int, str]] | None = None,
        *,
        daemon: FakeDaemon | None = None,
        error: str = "",
        user: int = 0,
        settings: Mapping[str, str | float | bool] | None = None,
    ) -> None:
        config = Config({"snapshots": str(root / "store"), **(settings or {})})
        super().__init__(config, error, root=root)
        self.answers = answers or {}
        self._daemon = daemon
        self._user = user
        for name, text in PROC.items():
            self.put(name, text)

    @property
    def user(self) -> int:
        return self._user

    @cached_property
    def daemon(self) -> Daemon:
        if self._daemon is None:
            raise OSError(2, "No such file or directory")
        return self._daemon

    def put(self, name: str, text: str) -> None:
        """Write a file of /proc or /sys."""
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).write_text(text + "\n")

    def run(self, *argv: str) -> tuple[int, str]:
        if " ".join(argv) not in self.answers:
            raise FileNotFoundError(2, "No such file or directory", argv[0])
        return self.answers[" ".join(argv)]


def states(found: Iterable[Verdict]) -> list[str]:
    """The states of some verdicts; every one that is not OK says why, and what to do."""
    verdicts = list(found)
    for verdict in verdicts:
        assert verdict.said
        assert verdict.state == "ok" or verdict.fix, verdict
    return [verdict.state for verdict in verdicts]
