"""What the daemon tells an engine of a container, as a typed value. The engine's side only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from shim import spawn
from shim.bundle import Bundle, write_atomically
from shim.config import Config
from shim.lean.values import Value
from shim.proto.task_pb import Mount
from shim.runc import Runc


class Work(Value):
    """One container and the one thing to be done with it (`verb`); see task/restoration.py."""

    verb: str
    id: str
    namespace: str
    bundle: Bundle
    folder: Path  # the container's place under the state folder
    rootfs: tuple[Mount, ...]
    terminal: bool
    config: Config
    containerd: str  # address of containerd's gRPC socket
    details: Mapping[str, Any] = field(default_factory=dict)  # what only this verb needs
    fds: Mapping[int, int] = field(default_factory=dict)  # the container's streams
    raw: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, request: Mapping[str, Any], fds: tuple[int, ...] = ()) -> Work:
        """The request as it came over the socket, with the descriptors that came along."""
        return cls(
            verb=request["verb"],
            id=request["id"],
            namespace=request["namespace"],
            bundle=Bundle(request["bundle"]),
            folder=Path(request["folder"]),
            rootfs=tuple(Mount(**mount) for mount in request["rootfs"]),
            terminal=request["terminal"],
            config=Config(request["config"]),
            containerd=request["containerd"],
            details=request,
            fds=dict(zip(request.get("fds", ()), fds, strict=True)),
            raw=request,
        )

    @property
    def runc(self) -> Runc:
        """runc for this container, waited for in this process."""
        return Runc(self.config, self.namespace, self.id, self.bundle.log, spawn.run)

    @property
    def upper(self) -> Path | None:
        """The overlay's upper directory, if the root file system is one writable overlay."""
        return self._overlay("upperdir")

    @property
    def scratch(self) -> Path | None:
        """The overlay's work directory."""
        return self._overlay("workdir")

    def _overlay(self, key: str) -> Path | None:
        if len(self.rootfs) != 1 or self.rootfs[0].type != "overlay":
            return None
        for option in self.rootfs[0].options:
            name, _, value = option.partition("=")
            if name == key:
                return Path(value)
        return None

    def remember(self) -> None:
        """Leave the request in the container's folder, so that `delete` can undo what we began."""
        request = json.dumps({**self.raw, "verb": "undo", "fds": []})
        write_atomically(str(self.marker), request.encode())  # half of it could not be undone

    @property
    def marker(self) -> Path:
        """Exists while a restore is under way."""
        return self.folder / "restoring"
