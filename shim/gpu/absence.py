"""Why the GPU memory library has no effect in a process, so that the driver has all of its memory.

Nothing is wrong then, only slower; but who waits for it wants to know. What is asked here is what
ld.so goes by (ld.so(8), "LD_PRELOAD"): the environment that the process was executed with, whether
it was given more rights than its parent had, and what its program is.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import Any

from shim.annotations import GPU_MEMORY
from shim.bundle import annotations_of
from shim.config import Config
from shim.gpu.given import may_be_several
from shim.gpu.preload import PLACE, SEVERAL, VARIABLE, digest_of, is_wanted

SWITCH = "THAW_GPU_MEMORY"  # "driver": the library takes nothing over in this process
_AT_SECURE = 23  # <linux/auxvec.h>
_PT_INTERP = 3  # <elf.h>, as what follows
_ELF64 = 2
_PHOFF, _PHENTSIZE, _PHNUM = 0x20, 0x36, 0x38
_HEAD = 64 << 10  # bytes; program headers stand right behind the first 64
_UNKNOWN = "its dynamic loader has not loaded the library"


def reason_of(pid: int, spec: Mapping[str, Any], config: Config) -> str:
    """One sentence, of a process in a container with this spec. Raises nothing: it may have ended.

    For a process in which the library has nothing to say: no marker was found.
    """
    if not digest_of(spec):
        return _not_given(spec, config)
    try:
        environment = _environment(pid)
        if _is_mapped(pid):
            return _idle(environment)
        return _not_loaded(pid, environment)
    except OSError as error:
        return f"nobody can tell whether the library is in it: {error.strerror}"


def forbidden(spec: Mapping[str, Any], config: Config) -> str:
    """Why nothing of a container with this spec shall be moved, whatever is in it; empty: it may.

    That can have changed since the container was created: by the operator, or in a restore into a
    pod that says so.
    """
    if config.text("gpu.memory") == "driver":
        return "gpu.memory says driver"
    if not is_wanted(annotations_of(dict(spec)), config):
        return f"{GPU_MEMORY} says driver"
    return ""


def _not_given(spec: Mapping[str, Any], config: Config) -> str:
    reason = forbidden(spec, config)
    if reason:
        return reason
    several = may_be_several(spec, config.text("BinaryName"))
    if not is_wanted(annotations_of(dict(spec)), config, several=several):
        return SEVERAL
    return "its container was created without the library (the log then says why)"


def _idle(environment: Mapping[str, str]) -> str:
    if environment.get(SWITCH) == "driver":
        return f"{SWITCH}=driver in its environment"
    return "it has never asked for 2 MiB of GPU memory at once"


def _not_loaded(pid: int, environment: Mapping[str, str]) -> str:
    preloaded = environment.get(VARIABLE, "").replace(":", " ").split()
    if PLACE not in preloaded:
        if VARIABLE in environment:
            return f"{VARIABLE} is another one: a wrapper has changed it"
        return f"{VARIABLE} is not in its environment: a wrapper has taken it out, or it was exec'd"
    if not os.path.exists(f"/proc/{pid}/root{PLACE}"):
        return f"it has a root directory of its own, without {PLACE}"
    if _is_secure(pid):
        return "it was started with more rights than its parent had (setuid, file capabilities)"
    loader = _loader(pid)
    if loader is None:
        return "its program is for another kind of processor (32 bit)"
    if not loader:
        return "its program is statically linked"
    return f"{_UNKNOWN} ({os.path.basename(loader)})"


def _environment(pid: int) -> dict[str, str]:
    """What it was executed with; a program may have changed its own since, to no effect."""
    with open(f"/proc/{pid}/environ", "rb") as file:
        entries = [os.fsdecode(entry).partition("=") for entry in file.read().split(b"\0")]
    return {name: value for name, _, value in entries}


def _is_mapped(pid: int) -> bool:
    with open(f"/proc/{pid}/maps", "rb") as file:
        return any(line.endswith(f" {PLACE}\n".encode()) for line in file)


def _is_secure(pid: int) -> bool:
    with open(f"/proc/{pid}/auxv", "rb") as file:
        data = file.read()
    pairs = struct.iter_unpack("=QQ", data[: len(data) // 16 * 16])
    return any(kind == _AT_SECURE and value for kind, value in pairs)


def _loader(pid: int) -> str | None:
    """The path of its program's dynamic loader; empty: it has none; None: no 64-bit ELF file."""
    with open(f"/proc/{pid}/exe", "rb") as file:
        head = file.read(_HEAD)
    if len(head) < _PHNUM + 2 or head[:4] != b"\x7fELF" or head[4] != _ELF64:
        return None
    (start,) = struct.unpack_from("=Q", head, _PHOFF)
    size, count = struct.unpack_from("=HH", head, _PHENTSIZE)
    for place in range(start, start + size * count, max(size, 1)):
        if place + 40 > len(head):
            break
        kind, _, offset, _, _, length = struct.unpack_from("=IIQQQQ", head, place)
        if kind == _PT_INTERP:
            return os.fsdecode(head[offset : offset + length].rstrip(b"\0"))
    return ""
