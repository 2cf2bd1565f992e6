"""What the threads of a snapshot may do, against what the pod's own spec allows.

CRIU runs as root and gives every thread the users, groups, capabilities, security module's label,
no_new_privs and seccomp filters that the images say. Whoever can put a snapshot into the store, or
change one, says so; the live spec has the last word. Read is what CRIU 4.2 would read: the cores
of the threads in pstree.img, and seccomp.img. What it would mount: filesystems.py.

What cannot be checked here:

- what a seccomp filter does: its program is the image's, from the runc and libseccomp of then. It
  is only known that the pod's spec has a profile and that each thread has a filter;
- files with the set-user-ID bit or capabilities in the root file system's difference: what comes
  of executing them is bound by the bounding set and no_new_privs, which are checked;
- descriptors: CRIU opens files by path inside the container, as root, before it becomes the user;
- limits and the OOM score, which restore/frozen.py sets, and niceness, which is not the spec's
  alone even in a cold boot;
- how a user namespace maps: whether there is one is compared by fit.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shim.errors import Damaged, Unfit
from shim.lean.values import Value
from shim.proto import criu_pb as pb
from shim.snapshot import capabilities, filesystems, seccomp
from shim.snapshot import images as criu
from shim.snapshot.allowance import Allowance
from shim.snapshot.bounded import check_size, decoded, only
from shim.snapshot.config import DAMAGED

_HINT = "make a snapshot of this pod, or change the pod"
_SECCOMP = 0x64413049  # the image's magic number (criu/include/magic.h)
_TREE_LIMIT = 1 << 20  # bytes; some ten thousand threads
_CORE_LIMIT = 1 << 20  # of one thread: registers, signals, groups; 10 KiB as a rule
_CORES_LIMIT = 1 << 27  # of all
_FILTERS_LIMIT = 1 << 24

_ALIVE, _DEAD = (pb.TASK_ALIVE, pb.TASK_STOPPED), (pb.TASK_DEAD, pb.TASK_ZOMBIE)
_UIDS = (("uid", "real"), ("euid", "effective"), ("suid", "saved"), ("fsuid", "file system"))
_SETS = (
    ("cap_prm", "permitted"),
    ("cap_eff", "effective"),
    ("cap_amb", "ambient"),
    ("cap_inh", "inheritable"),
    ("cap_bnd", "bounding"),
)
_CAPABILITY_WORDS = 2
_FIXUP, _KNOWN_BITS = 1 << 2, 0xFFF  # SECBIT_NO_SETUID_FIXUP; those of linux/securebits.h
_REAL_TIME = (1, 2, 6)  # SCHED_FIFO, SCHED_RR, SCHED_DEADLINE


def check(images: Path, spec: Mapping[str, Any]) -> None:
    """Raise Unfit unless each thread in the folder `images` may have what it has.

    `spec` is the live config.json. Damaged if the images are not such that CRIU could read them.
    """
    try:
        _check(images, spec)
    except Damaged as error:
        raise Damaged(f"{images}: {error.message}", hint=error.hint or DAMAGED) from error
    except criu.NotIndexable as error:
        raise Damaged(f"{images}: {error}", hint=DAMAGED) from error
    except OSError as error:
        raise Damaged(f"{images}: {error.strerror}", hint=DAMAGED) from error


def _check(images: Path, spec: Mapping[str, Any]) -> None:
    allowed = Allowance.of(spec)
    names = frozenset(os.listdir(images))
    for reason in (*_folder(names, allowed), *filesystems.foreign(images, names, spec)):
        raise Unfit(reason, hint=_HINT)
    record = b""
    if seccomp.NAME in names:
        record = only(images, seccomp.NAME, _SECCOMP, _FILTERS_LIMIT)
    filters = seccomp.Filters(record)
    for thread in _threads(images):
        for reason in _excess(thread, allowed, filters):
            raise Unfit(f"{thread} {reason}", hint=_HINT)


def _folder(names: frozenset[str], allowed: Allowance) -> Iterator[str]:
    if "apparmor.img" in names:
        yield "it brings AppArmor policies, which CRIU would load into this machine's kernel"
    if not allowed.user_namespace and any(name.startswith("userns-") for name in names):
        yield "it has a user namespace, the pod has none of its own"


# Threads


class Thread(Value):
    """A thread, and the first one of its process (which may be itself)."""

    number: int
    process: int
    core: pb.ThreadCore
    creds: pb.Creds
    first: pb.ThreadCore

    def __str__(self) -> str:
        name = self.core.comm.split(b"\0")[0] or self.first.comm.split(b"\0")[0]
        shown = f" ({name[:16].decode(errors='replace')!a:.40})" if name else ""
        return f"thread {self.number} of process {self.process}{shown}"


def _threads(images: Path) -> Iterator[Thread]:
    """All threads that live, as CRIU would make them."""
    seen: set[int] = set()
    left = _CORES_LIMIT
    check_size(images, "pstree.img", _TREE_LIMIT)
    for entry in criu.tree(images):
        numbers = dict.fromkeys([entry.pid, *entry.threads])
        if seen & numbers.keys():
            raise Damaged("pstree.img has one thread twice")
        seen |= numbers.keys()
        first = None
        for number in numbers:
            core, size = _core(images, number)
            left -= size
            if left < 0:
                raise Damaged(f"the cores have more than {_CORES_LIMIT} bytes")
            if number == entry.pid and not _lives(core, number):
                break
            made = _thread(core, number, entry.pid, first)
            first = made.first
            yield made


def _core(images: Path, number: int) -> tuple[pb.Core, int]:
    """A thread's core, and the size of its record in bytes."""
    name = f"core-{number}.img"
    record = only(images, name, criu.CORE, _CORE_LIMIT)
    return decoded(pb.Core, record, name), len(record)


def _lives(core: pb.Core, number: int) -> bool:
    """Whether a process has threads; for one that is dead CRIU makes a process that exits."""
    state = core.tc.task_state if core.tc is not None else 0
    if state not in _ALIVE + _DEAD:
        raise Damaged(f"core-{number}.img: no task has state {state}")
    return state in _ALIVE


def _thread(core: pb.Core, number: int, process: int, first: pb.ThreadCore | None) -> Thread:
    found = core.thread_core
    # Without creds CRIU would leave the thread those of its own, root's.
    if found is None or found.creds is None:
        raise Damaged(f"core-{number}.img does not say who the thread is")
    task = core.tc
    if task is not None and not (task.old_seccomp_mode is None and task.old_seccomp_filter is None):
        raise Damaged(f"core-{number}.img has seccomp's state where an old CRIU had it")
    return Thread(number, process, found, found.creds, first or found)


# Rules


def _excess(thread: Thread, allowed: Allowance, filters: seccomp.Filters) -> Iterator[str]:
    """What a thread has and must not have, in words."""
    yield from _identities(thread.creds, allowed)
    yield from _capabilities(thread.creds, allowed)
    yield from _filter(thread, allowed, filters)
    yield from _label(thread.creds, allowed)
    if allowed.no_new_privileges and not thread.creds.no_new_privs:
        yield "could gain privileges (no_new_privs is not set), the pod must not"
    if thread.core.sched_policy in _REAL_TIME and not allowed.real_time:
        yield f"has the real-time scheduling policy {thread.core.sched_policy}, the pod may not"


def _identities(creds: pb.Creds, allowed: Allowance) -> Iterator[str]:
    for field, kind in _UIDS:
        for ids, name in ((allowed.uids, field), (allowed.gids, field.replace("uid", "gid"))):
            found = getattr(creds, name)
            if ids is not None and found not in ids:
                what = "user" if name == field else "group"
                yield f"has {kind} {what} id {found}, the pod has {_numbers(ids)}"
    more = sorted(set(creds.groups) - allowed.gids) if allowed.gids is not None else []
    if more and allowed.gids is not None:
        yield f"is in groups {_numbers(more)}, the pod has {_numbers(allowed.gids)}"


def _capabilities(creds: pb.Creds, allowed: Allowance) -> Iterator[str]:
    held = {}
    for field, kind in _SETS:
        words = getattr(creds, field)
        if len(words) > _CAPABILITY_WORDS:
            raise Damaged(f"a core has {len(words)} words of {kind} capabilities")
        held[kind] = capabilities.words(words)
        own = kind in ("inheritable", "bounding")
        more = held[kind] & ~(allowed.bounding if own else allowed.attainable)
        if more:
            names = " ".join(capabilities.names(more)[:8])
            yield f"has {kind} capabilities that the pod cannot have: {names}"
    if held["effective"] & ~held["permitted"]:
        yield "has effective capabilities that are not permitted"
    if held["ambient"] & ~(held["permitted"] & held["inheritable"]):
        yield "has ambient capabilities that are not permitted and inheritable"
    weaker = creds.secbits & _FIXUP and not allowed.bounding & capabilities.bits(["CAP_SETPCAP"])
    if weaker or creds.secbits & ~_KNOWN_BITS:
        yield f"has secure bits {creds.secbits:#x}, which the pod could not have set"


def _filter(thread: Thread, allowed: Allowance, filters: seccomp.Filters) -> Iterator[str]:
    for core in (thread.first, thread.core):
        if core.seccomp_mode == pb.SECCOMP_FILTER and core.seccomp_filter >= len(filters):
            raise Damaged(f"there is no seccomp filter {core.seccomp_filter}")
    mode = thread.core.seccomp_mode or pb.SECCOMP_DISABLED
    if mode not in (pb.SECCOMP_DISABLED, pb.SECCOMP_STRICT, pb.SECCOMP_FILTER):
        raise Damaged(f"there is no seccomp mode {mode}")
    if not allowed.filtered or mode != pb.SECCOMP_DISABLED:
        return
    # CRIU dumps filters that all threads of a process have with the first one alone, marked so,
    # and the others without any (try_use_tsync in criu/seccomp.c).
    first = thread.first
    if first.seccomp_mode != pb.SECCOMP_FILTER or not filters.synced(first.seccomp_filter):
        yield "has no seccomp filter, the pod's spec has a profile"


def _label(creds: pb.Creds, allowed: Allowance) -> Iterator[str]:
    if creds.lsm_profile not in allowed.labels:
        pods = " or ".join(map(_text, sorted(allowed.labels)))
        yield f"has the security profile {_text(creds.lsm_profile)}, the pod has {pods}"
    if creds.lsm_sockcreate and creds.lsm_sockcreate not in allowed.labels:
        yield f"labels its sockets {_text(creds.lsm_sockcreate)}, the pod's spec does not say so"


def _text(label: bytes) -> str:
    return f"{label.decode(errors='replace')!a:.80}" if label else "none"


def _numbers(ids: frozenset[int] | list[int]) -> str:
    shown = sorted(ids)
    return " ".join(map(str, shown[:8])) + (" …" if len(shown) > 8 else "")
