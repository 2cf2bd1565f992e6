"""Removing folders of ours in which CRIU or runc may have left mounts.

A CRIU that is killed leaves its "cgroup yard" behind, the host's cgroup trees mounted in its
working directory; a runc that is killed leaves the root file system bound below its own state.
Whoever removes such a folder without looking removes the host's empty cgroups, or the files of
that root file system. So the mounts go first, and nothing here enters another file system.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from shim.mount import unmount_all

_ATTEMPTS = 100
_PAUSE = 0.02  # seconds between two of them


def remove_folder(path: str) -> None:
    """Remove a folder with what is in it; one that is not there is no error.

    A CRIU that was killed a moment ago may still leave something there: that goes, too.
    """
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(info.st_mode):  # a link: what it leads to is not ours
        os.unlink(path)
        return
    for left in reversed(range(_ATTEMPTS)):
        unmount_all(path)
        try:
            _remove(path, info.st_dev)
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or not left:
                raise
        time.sleep(_PAUSE)


def _remove(path: str, device: int) -> None:
    for entry in list(os.scandir(path)):
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.path)
        elif entry.stat(follow_symlinks=False).st_dev == device:
            _remove(entry.path, device)
        else:
            raise OSError(errno.EXDEV, "something is still mounted there", entry.path)
    os.rmdir(path)
