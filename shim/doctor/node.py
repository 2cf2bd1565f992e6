"""The machine, as the checks see it: every question they have goes through here."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from shim.config import Config
from shim.doctor.daemon import Daemon
from shim.runc import runtime_env

SOCKET = "/run/containerd/containerd.sock"
_PATIENCE = 60.0  # seconds for a program


class Node:
    """One node. `error` is why its configuration cannot be used; `config` is the default's then."""

    def __init__(
        self,
        config: Config,
        error: str = "",
        *,
        root: Path = Path("/"),
        containerd: str = "containerd",
        address: str = SOCKET,
    ) -> None:
        self.config = config
        self.error = error
        self.containerd = containerd
        self.address = address
        self._root = root

    @property
    def user(self) -> int:
        """Who is asking."""
        return os.geteuid()

    @cached_property
    def daemon(self) -> Daemon:
        """The containerd that listens at the address. Raises OSError if none does."""
        return Daemon(self.address)

    def path(self, name: str) -> Path:
        """A file of /proc, /sys or /run."""
        return self._root / name.lstrip("/")

    def read(self, name: str) -> str:
        """What such a file says. Raises OSError."""
        return self.path(name).read_text(errors="replace").strip()

    @property
    def env(self) -> Mapping[str, str]:
        """The environment in which runc and CRIU run."""
        return runtime_env(self.config)

    def run(self, *argv: str) -> tuple[int, str]:
        """The exit status of a program and all that it said. Raises OSError."""
        return _run(argv, self.env)


def _run(argv: Sequence[str], env: Mapping[str, str]) -> tuple[int, str]:
    try:
        done = subprocess.run(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, f"no end after {_PATIENCE:g} s"
    return done.returncode, done.stdout.decode(errors="replace").strip()
