"""The control directory: where a worker says that it is ready, and learns what has become of it.

It is the contract that Dynamo's workers speak: a folder at /snapshot-control, also named by
SNAPSHOT_CONTROL_DIR, in which the worker writes `ready-for-snapshot` and then waits for
`snapshot-complete` (its snapshot is made, it shall exit) or `restore-complete` (it goes on, in the
old place or in a new one). Ours also has `identity.json`, and `wake`, a FIFO with a line for each
event, for who would rather not poll.

The container can put anything there at any time, and its links, devices and folders must lead us
nowhere: every entry is looked at by the directory's descriptor and without following links, and
what is written is a new file that takes its name by one rename.
"""

from __future__ import annotations

import errno
import os
import stat

from shim.errors import FailedPrecondition, InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

PLACE = "/snapshot-control"
VARIABLES = ("SNAPSHOT_CONTROL_DIR", "DYN_SNAPSHOT_CONTROL_DIR")
READY = "ready-for-snapshot"
SAVED = "snapshot-complete"
RESTORED = "restore-complete"
IDENTITY = "identity.json"
WAKE = "wake"

_OURS = (READY, SAVED, RESTORED, IDENTITY)
_NEVER = ("", "bin", "dev", "etc", "lib", "proc", "sbin", "sys", "usr")  # what is not mounted over
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ENTRY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class User:
    """Whom a container's process runs as, in the host's ids."""

    __slots__ = ("gid", "groups", "uid")

    def __init__(self, uid: int, gid: int, groups: tuple[int, ...] = ()) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups


def user_of(spec: Mapping[str, Any]) -> User:
    """The user of a spec's process, through the spec's id mappings if it has any."""
    user = (spec.get("process") or {}).get("user") or {}
    linux = spec.get("linux") or {}
    uids, gids = linux.get("uidMappings") or (), linux.get("gidMappings") or ()
    return User(
        _on_the_host(user.get("uid", 0), uids),
        _on_the_host(user.get("gid", 0), gids),
        tuple(_on_the_host(gid, gids) for gid in user.get("additionalGids") or ()),
    )


def _on_the_host(id: int, mappings: Any) -> int:
    for mapping in mappings:
        inside = id - mapping.get("containerID", 0)
        if 0 <= inside < mapping.get("size", 0):
            return int(mapping.get("hostID", 0) + inside)
    return int(id)


def place_of(spec: Mapping[str, Any]) -> str:
    """Where a container has its control directory: the pod may name another place.

    Raises InvalidArgument for what is no such place.
    """
    for entry in (spec.get("process") or {}).get("env") or ():
        name, _, path = entry.partition("=")
        if name in VARIABLES and path:
            whole = path.startswith("/") and not path.startswith("//")
            whole = whole and os.path.normpath(path) == path
            if not whole or path[1:].partition("/")[0] in _NEVER:
                raise InvalidArgument(
                    f"{name}={path[:80]!r} is no place for a control directory",
                    hint=f"leave the variable out: it is {PLACE} then",
                )
            return str(path)
    return PLACE


def mount_of(spec: Mapping[str, Any], place: str) -> Mapping[str, Any] | None:
    """The spec's own mount at a path, the last if there are several: it hides the others."""
    found: Mapping[str, Any] | None = None
    for mount in spec.get("mounts") or ():
        if os.path.normpath(mount.get("destination", "")) == place:
            found = mount
    return found


def find(spec: Mapping[str, Any]) -> Control | None:
    """The control directory of a container, ours or its own volume; None if it has none."""
    mount = mount_of(spec, place_of(spec))
    if mount is None:
        return None
    options = mount.get("options") or ()
    bound = mount.get("type") == "bind" or "bind" in options or "rbind" in options
    if "ro" in options or not bound:
        return None
    return Control(mount.get("source", ""), user_of(spec))


class Control:
    """The control directory at a path on the host; `user` is the container's."""

    __slots__ = ("_user", "path")

    def __init__(self, path: str, user: User) -> None:
        self.path = path
        self._user = user

    def clear(self) -> None:
        """Remove what an earlier container has left, and make the FIFO.

        Raises FailedPrecondition if it is no directory of the container's, OSError.
        """
        folder = self._open()
        try:
            for name in _OURS:
                _remove(folder, name)
            _remove(folder, WAKE)
            os.mkfifo(WAKE, 0o600, dir_fd=folder)
            fifo = os.open(WAKE, _ENTRY, dir_fd=folder)
            try:
                if stat.S_ISFIFO(os.fstat(fifo).st_mode):  # somebody else may have the volume, too
                    os.chown(f"/proc/self/fd/{fifo}", self._user.uid, self._user.gid)
                    os.chmod(f"/proc/self/fd/{fifo}", 0o666)  # noqa: S103 - whomever it becomes
            finally:
                os.close(fifo)
        finally:
            os.close(folder)

    def ready(self) -> bool:
        """Whether the worker has said that it is ready. A folder or a link of that name is not it.

        Raises FailedPrecondition, OSError if it cannot be looked at.
        """
        folder = self._open()
        try:
            return stat.S_ISREG(os.stat(READY, dir_fd=folder, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False
        finally:
            os.close(folder)

    def tell(self, event: str) -> None:
        """Write the event's file, then wake whoever has opened the FIFO.

        Raises FailedPrecondition, OSError if the file cannot be written.
        """
        self.write(event, b"")
        folder = self._open()
        try:
            _wake(folder, event.encode() + b"\n")
        finally:
            os.close(folder)

    def write(self, name: str, data: bytes) -> None:
        """Make a file with that content, or replace one, by one rename.

        Raises FailedPrecondition, OSError if that cannot be done: there is a folder of that name,
        or no room.
        """
        folder = self._open()
        temporary = f".{name}.{os.urandom(8).hex()}"
        try:
            fd = os.open(temporary, _NEW, 0o600, dir_fd=folder)
            try:
                _write_all(fd, data)
                os.fchown(fd, self._user.uid, self._user.gid)
                os.fchmod(fd, 0o644)
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError as error:
                _remove(folder, temporary)
                raise OSError(error.errno, error.strerror, f"{self.path}/{name}") from None
            finally:
                os.close(fd)
        finally:
            os.close(folder)

    def _open(self) -> int:
        """The directory. A volume is one if the container's user might write there, too.

        Otherwise a pod could have us write where it could not, as in a folder of the host's.
        """
        try:
            folder = os.open(self.path, _FOLDER)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            raise FailedPrecondition(
                f"{self.path} is no directory", hint="the control directory must be one"
            ) from None
        if self._may_write(os.fstat(folder)):
            return folder
        os.close(folder)
        raise FailedPrecondition(
            f"{self.path} is not writable for the container's user {self._user.uid}",
            hint="the control directory must be; an emptyDir is",
        )

    def _may_write(self, info: os.stat_result) -> bool:
        user = self._user
        if user.uid in (0, info.st_uid):
            return user.uid == 0 or bool(info.st_mode & 0o200)
        if info.st_gid in (user.gid, *user.groups):
            return bool(info.st_mode & 0o020)
        return bool(info.st_mode & 0o002)


def _remove(folder: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        os.rmdir(name, dir_fd=folder)


def _wake(folder: int, line: bytes) -> None:
    """Write a line into the FIFO, if it is one and somebody listens; never wait.

    What is not known to be a FIFO is not opened: it may be a device, which an opening can set off.
    """
    try:
        entry = os.open(WAKE, _ENTRY, dir_fd=folder)
    except OSError:
        return
    try:
        if not stat.S_ISFIFO(os.fstat(entry).st_mode):
            return
        fifo = os.open(f"/proc/self/fd/{entry}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(fifo, line)
        finally:
            os.close(fifo)
    except OSError:
        pass  # nobody has it open, or nobody reads it: there is the file
    finally:
        os.close(entry)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
