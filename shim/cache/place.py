"""Where the cache's memory is: a tmpfs of its own, in huge pages, that outlives the holder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from shim import log
from shim.config import Config
from shim.mount import mount_all, mount_points, unmount_all
from shim.proto.task_pb import Mount

_SLACK = 64 << 20  # bytes for what is written down of snapshots


def folder_of(config: Config) -> Path:
    """The mount point."""
    return Path(config.text("state")) / "cache"


def make(folder: Path, size: int) -> None:
    """Mount a tmpfs there that takes so many bytes of data, or more for now, if more are in it.

    Raises OSError.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    room = f"size={size + _SLACK}"
    if str(folder) in mount_points(str(folder)):
        with suppress(OSError):  # what is too much goes as soon as it is known
            _mount(folder, ["remount", "noexec", "nosuid", "nodev", room])
        return
    options = ["noexec", "nosuid", "nodev", "mode=0700", room]
    try:
        _mount(folder, [*options, "huge=always"])
    except OSError as error:
        log.warning("the cache is in small pages", reason=error.strerror)
        _mount(folder, options)


def fit(folder: Path, size: int) -> None:
    """The same once what is too much has gone."""
    with suppress(OSError):
        _mount(folder, ["remount", "noexec", "nosuid", "nodev", f"size={size + _SLACK}"])


def remove(folder: Path) -> None:
    """Give all of the memory back. Raises OSError."""
    unmount_all(str(folder))
    with suppress(FileNotFoundError):
        folder.rmdir()


def _mount(folder: Path, options: list[str]) -> None:
    mount_all([Mount(type="tmpfs", source="thaw-cache", target="", options=options)], str(folder))
