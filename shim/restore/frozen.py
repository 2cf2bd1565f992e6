"""Processes that CRIU has made and that do not run yet: what is looked at, and what is set.

The image and what is recorded of it are the snapshot's word; the spec is the live pod's.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from shim._native import ffi, lib
from shim.errors import RestoreFailed
from shim.mount import BIND, REMOUNT, Options
from shim.namespaces import inside as inside_of
from shim.namespaces import is_own
from shim.processes import processes_below
from shim.restore.plan import Plan
from shim.snapshot import capabilities
from shim.snapshot.config import MountPoint
from shim.snapshot.mounts import differences, inside, missing, mounts_of, unexpected, without

_BINDING = frozenset(("ro", "nosuid", "nodev", "noexec"))
_HINT = "a volume with other rights than the pod's spec says would be a hole"


def check_mounts(spec: Mapping[str, Any], plan: Plan, init: int) -> None:
    """CRIU took the mounts from the image: they must be what they were, and what the pod may have.

    Raises RestoreFailed. `init` is the first process, by a pid of ours.
    """
    found = mounts_of(init)
    # runc masks a file with /dev/null, once the container's and once the host's: the mount differs
    # from restore to restore, so for these it is looked at what is there.
    masked = masked_files(spec, found)
    resolve = inside(f"/proc/{init}/root")
    complaints = unexpected(spec, found, resolve) + missing(spec, found, resolve)
    complaints += [f"{path} is not masked" for path in masked if not _is_null(init, path)]
    if plan.mounts:  # unless they are images of which nothing is recorded
        complaints += differences(without(list(plan.mounts), masked), without(found, masked))
    if complaints:
        raise RestoreFailed(f"mounts differ: {'; '.join(complaints[:4])}", hint=_HINT)


def tighten(plan: Plan, init: int) -> None:
    """Forbid what CRIU has let mounts do that they could not do at the dump. Raises RestoreFailed.

    Of what is mounted twice from one source, CRIU 4.2 makes the second a bind of the first before
    that one is read-only, and leaves it so. Nothing is ever allowed here; `check_mounts` judges.
    """
    namespace = f"/proc/{init}/ns/mnt"
    wanted = _looser(plan.mounts, mounts_of(init))
    if not wanted or is_own(namespace, "mnt"):
        return
    for path, flags in wanted:
        # One call alone: Python must not take a file of the image's for one of its own in there.
        mount = partial(lib.thaw_mount, ffi.NULL, b"", path, b"", flags, ffi.NULL)
        done = inside_of(namespace, "mnt", mount)
        if done < 0:
            raise RestoreFailed(
                f"cannot bind the mount at {os.fsdecode(path)!a:.200} to what it was: "
                f"{os.strerror(-done)}",
                hint=_HINT,
            )


def _looser(then: Sequence[MountPoint], now: Sequence[MountPoint]) -> list[tuple[bytes, int]]:
    """Mounts by path, with the flags that they shall have, where one lacks some that it had."""
    before = {point.path: set(point.options) & _BINDING for point in then}
    found = []
    for point in now:
        lacking = before.get(point.path, set()) - set(point.options)
        if lacking:
            options = Options({*point.options, *lacking} - {"rw"})
            found.append((os.fsencode(point.path), BIND | REMOUNT | options.flags))
    return found


def masked_files(spec: Mapping[str, Any], found: Sequence[MountPoint]) -> tuple[str, ...]:
    """The live spec's masked paths but for folders: those are masked with a tmpfs of their own."""
    folders = {m.path for m in found if m.type == "tmpfs" and "ro" in m.options}
    return tuple(sorted(set((spec.get("linux") or {}).get("maskedPaths") or []) - folders))


def _is_null(pid: int, path: str) -> bool:
    try:
        info = os.stat(f"/proc/{pid}/root{path}")
    except FileNotFoundError:
        return True  # this kernel has no such file
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == os.makedev(1, 3)


def set_limits(spec: Mapping[str, Any], init: int) -> None:
    """Bind every process to the live spec's resource limits and OOM score. Raises OSError.

    CRIU sets those of the image, as root, even if no process of this pod could have come by them.
    What a worker has given up by itself stays so: lower limits, a higher score than its first
    process has. Without a word in the spec, runc leaves them as they are, and so do we.
    """
    process = spec.get("process") or {}
    pids = sorted(processes_below(init).values())
    limits = {} if _may_raise(process) else _limits(process)
    for pid in pids:
        for kind, most in limits.items():
            _lower(pid, kind, most)
    if process.get("oomScoreAdj") is not None:
        _set_scores(int(process["oomScoreAdj"]), init, pids)


def _may_raise(process: Mapping[str, Any]) -> bool:
    """Whether the pod's processes could have raised their limits beyond the spec's."""
    bounding = (process.get("capabilities") or {}).get("bounding") or []
    return bool(capabilities.bits(bounding) & capabilities.bits(["CAP_SYS_RESOURCE"]))


_Limit = tuple[int, int]  # soft, hard; RLIM_INFINITY is -1


def _limits(process: Mapping[str, Any]) -> dict[int, _Limit]:
    """The spec's limits, by number."""
    found = {}
    for entry in process.get("rlimits") or []:
        kind = getattr(resource, entry.get("type", ""), None)
        if isinstance(kind, int):
            found[kind] = (_signed(entry.get("soft", 0)), _signed(entry.get("hard", 0)))
    return found


def _signed(limit: int) -> int:
    """Of a number of 64 bits, as Python has limits."""
    return resource.RLIM_INFINITY if limit >= 1 << 63 else limit


def _lower(pid: int, kind: int, most: _Limit) -> None:
    """A process may raise its soft limit to the hard one, so only that one is the spec's to say."""
    soft, hard = resource.prlimit(pid, kind)
    bound = _least(hard, most[1])
    if bound != hard:
        resource.prlimit(pid, kind, (_least(soft, bound), bound))


def _least(one: int, other: int) -> int:
    limited = [limit for limit in (one, other) if limit != resource.RLIM_INFINITY]
    return min(limited, default=resource.RLIM_INFINITY)


def _set_scores(score: int, init: int, pids: list[int]) -> None:
    images = _score(init)
    for pid in pids:
        found = _score(pid)
        # What differs from the first process's is what a process has raised for itself.
        wanted = score if found <= images else max(found, score)
        # Without CAP_SYS_RESOURCE a score can only be raised, which is all that matters here.
        with suppress(PermissionError), open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write(str(wanted))


def _score(pid: int) -> int:
    with open(f"/proc/{pid}/oom_score_adj") as file:
        return int(file.read())
