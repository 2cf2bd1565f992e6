"""What this machine is, as far as a dumped process depends on it."""

from __future__ import annotations

import os

from shim import log, spawn
from shim.cgroup import is_unified
from shim.config import Config
from shim.errors import ThawError, Unavailable, Unfit
from shim.runc import runtime_env
from shim.snapshot.config import Gpu, Host
from shim.snapshot.kernel import kernel_features

OLDEST_CRIU = (4, 2)


def this_host(criu: str = "", *, gpus: bool = True) -> Host:
    """The facts of this machine; a restore need not ask CRIU for its version, it will see.

    `gpus` false: they do not matter, so the driver is not asked, which can take a second.
    """
    system = os.uname()
    return Host(
        architecture=system.machine,
        kernel=system.release,
        criu=criu,
        cpu_features=cpu_features(),
        kernel_features=kernel_features(),
        cgroup=2 if is_unified() else 1,
        gpus=host_gpus() if gpus else [],
    )


def host_gpus() -> list[Gpu]:
    """The GPUs of this machine by kind; none if NVML fails, as others must not suffer from that."""
    from shim.gpu import nvml
    from shim.gpu.rules import kinds

    if not nvml.present():
        return []
    try:
        return kinds(nvml.gpus())
    except Unfit as error:
        log.warning("the GPUs are unknown", reason=str(error))
        return []


def criu_version(config: Config) -> str:
    """The version that `criu` says it has, 4.2 or newer.

    Versions are compared here because nothing less shows it: 4.1 starts, checks well, and fails
    to dump a TCP socket on kernels from 6.16 on (getsockopt SO_PASSCRED is refused there).
    """
    program = config.text("criu") or "criu"
    try:
        done = spawn.run([program, "--version"], runtime_env(config))
    except OSError as error:
        raise _no_criu(f"cannot run {program}: {error.strerror}") from error
    words = done.text.partition("Version:")[2].split()
    version = words[0] if words else ""
    if done.status or _numbers(version) < OLDEST_CRIU:
        raise _no_criu(f"{program} is {version or 'no CRIU'}")
    return version


def require_criu(config: Config) -> None:
    """Raise Unavailable if the configured CRIU is not there: runc would take another, unasked."""
    program = config.text("criu")
    if program and not os.access(program, os.X_OK):
        raise _no_criu(f"no program {program}")


def cpu_features() -> list[str]:
    """The features of the first processor, sorted."""
    with open("/proc/cpuinfo") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return sorted(value.split())
    return []


def read_mount_table(pid: int) -> str:
    """The mountinfo of a process, as the kernel writes it."""
    with open(f"/proc/{pid}/mountinfo") as file:
        return file.read()


def on_tmpfs(path: str) -> bool:
    """Whether `path` lies on a tmpfs, going by the mount that holds it."""
    try:
        device = os.stat(path).st_dev
    except OSError:
        return False
    for line in read_mount_table(os.getpid()).splitlines():
        before, _, after = line.partition(" - ")
        major, _, minor = before.split()[2].partition(":")
        if os.makedev(int(major), int(minor)) == device:
            return after.split()[0] == "tmpfs"
    return False


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _no_criu(what: str) -> ThawError:
    wanted = ".".join(map(str, OLDEST_CRIU))
    return Unavailable(
        what, hint=f"Thaw needs CRIU {wanted} or newer; runtimeclass/install.sh has one"
    )
