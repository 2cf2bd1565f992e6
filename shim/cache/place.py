"""Where the cache's memory is: a tmpfs of its own, in huge pages, that outlives the holder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from shim import log
from shim.config import Config
from shim.mount import mount_all, unmount_all
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
    if folder.is_mount():
        fit(folder, size)
        return
    options = [*_options(size), "mode=0700"]
    try:
        _mount(folder, [*options, "huge=always"])
    except OSError as error:
        log.warning("the cache is in small pages", reason=error.strerror)
        _mount(folder, options)


def fit(folder: Path, size: int) -> None:
    """Have it take so many bytes, unless more are in it: then again, once these have gone."""
    with suppress(OSError):
        _mount(folder, ["remount", *_options(size)])


def remove(folder: Path) -> None:
    """Give all of the memory back. Raises OSError."""
    unmount_all(str(folder))
    with suppress(FileNotFoundError):
        folder.rmdir()


def _options(size: int) -> list[str]:
    return ["noexec", "nosuid", "nodev", f"size={size + _SLACK}"]


def _mount(folder: Path, options: list[str]) -> None:
    mount_all([Mount(type="tmpfs", source="thaw-cache", target="", options=options)], str(folder))
