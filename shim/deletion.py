"""`delete`: what containerd runs after every task, and after a shim that died.

It must be idempotent, be done within five seconds, and must not touch the pod's shared shim. The
answer on stdout is one DeleteResponse; warnings go to stderr, which containerd logs.
"""

from __future__ import annotations

import os
import sys

from shim import spawn
from shim.bundle import Bundle, read_pid
from shim.errors import ThawError
from shim.runc import Runc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.bootstrap import Flags

KILLED = 137


def delete(flags: Flags) -> int:
    """Remove whatever is left of the container `-id`; prints how it ended."""
    from shim.proto.known import now
    from shim.proto.task_pb import DeleteResponse

    bundle = Bundle(flags["bundle"] or f"{os.path.dirname(os.getcwd())}/{flags['id']}")
    pid = read_pid(bundle.pid_file)
    if os.path.isdir(bundle.path):
        clean(bundle, flags["namespace"], flags["id"])
    response = DeleteResponse(pid=pid, exit_status=KILLED, exited_at=now())
    sys.stdout.buffer.write(response.encode())
    sys.stdout.flush()
    return 0


def clean(bundle: Bundle, namespace: str, container_id: str) -> None:
    """Remove the container from runc, its mounts and our own files; each part on its own."""
    from shim.task.container import remove_state
    from shim.task.creation import container_folder
    from shim.task.options import kept
    from shim.trial import REQUEST, folder_of

    config = kept(bundle)
    folder = container_folder(config, namespace, container_id)
    runc = Runc(config, namespace, container_id, bundle.log, spawn.run)

    def unmount() -> None:
        from shim.mount import unmount_all

        unmount_all(bundle.rootfs)

    for path in (f"{folder}/restoring", f"{folder_of(folder)}/{REQUEST}"):
        if os.path.lexists(path):
            _try(lambda path=path: _undo(path))
    for part in (lambda: runc.delete(force=True), unmount, lambda: remove_state(folder)):
        _try(part)
    _try(lambda: _remove_dead_socket(f"{bundle.path}/address"))


def _remove_dead_socket(note: str) -> None:
    """A shim that was killed could not remove its socket; one that lives answers there."""
    from shim.bootstrap import answers

    try:
        with open(note) as file:
            path = file.read().strip().removeprefix("unix://")
    except FileNotFoundError:
        return
    if os.path.lexists(path) and not answers(path):
        os.unlink(path)


def _try(part: object) -> None:
    try:
        part()  # type: ignore[operator]
    except (ThawError, OSError) as error:
        print(f"containerd-shim-thaw-v1 delete: {error}", file=sys.stderr)


def _undo(path: str) -> None:
    """The shim died in the middle of a restore, or of the trial of a snapshot: let an engine remove
    what that one had made."""
    from shim.task.engine import PROGRAM

    done = spawn.run([sys.executable, "-IS", PROGRAM, "undo", path], os.environ)
    if done.status:
        print(f"containerd-shim-thaw-v1 delete: {done.text}", file=sys.stderr)
