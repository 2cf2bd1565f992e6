"""A container's root file system: where containerd wants it mounted, and from what."""

from __future__ import annotations

from shim.mount import mount_all, unmount_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from shim.proto.task_pb import Mount


class Rootfs:
    """The mounts that containerd sent with Create; without any, the folder is used as it is."""

    def __init__(self, path: str, mounts: Sequence[Mount]) -> None:
        self.path = path
        self.mounts = mounts

    def mount(self) -> None:
        """Mount all of it, or nothing and raise OSError."""
        if self.mounts:
            mount_all(self.mounts, self.path)

    def unmount(self) -> None:
        """Undo `mount`; harmless if nothing is mounted."""
        if self.mounts:
            unmount_all(self.path)

    def as_list(self) -> list[dict[str, object]]:
        """The mounts as plain data, for the engine."""
        return [
            {"type": m.type, "source": m.source, "target": m.target, "options": list(m.options)}
            for m in self.mounts
        ]
