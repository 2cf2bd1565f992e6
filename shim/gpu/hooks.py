"""What NVIDIA's hooks do to a container as it is created, and what becomes of that at a restore.

Hooks of CDI are `createContainer`: they write links, library caches and the like into the root,
where a snapshot's difference has them. `runc restore` runs none of that stage, and none is missed.

`prestart` and `createRuntime` it does run (libcontainer/criu_linux.go, "setup-namespaces"), though
the mount namespace is but a copy of the node's then: a hook that mounts the driver's libraries,
which is how they came before CDI, would do that on the node. It is taken out of the spec. CRIU does
not dump such mounts anyway: their sources are in no spec.

The daemon imports this: nothing outside of its import budget.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

CLI = "nvidia-container-cli"  # what mounts, called by one hook or another
_OUTSIDE = ("prestart", "createRuntime")  # run in the node's namespaces
_PARAMS = "disable-device-node-modification"  # a hook of CDI, by nvidia-cdi-hook or nvidia-ctk


def every(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All hooks of a spec."""
    return [hook for hooks in (spec.get("hooks") or {}).values() for hook in hooks or ()]


def names_nvidia(path: str) -> bool:
    """Whether a program is NVIDIA's, going by what it is called."""
    return "nvidia" in os.path.basename(path)


def mounting(spec: Mapping[str, Any]) -> list[str]:
    """The hooks that mount a GPU's libraries beside the spec: their programs."""
    return [hook["path"] for stage in _OUTSIDE for hook in _of(spec, stage) if _mounts(hook)]


def without_mounting(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec as it is to be for a restore: `spec` itself if it has no such hook."""
    if not mounting(spec):
        return spec
    hooks = {
        stage: [hook for hook in _of(spec, stage) if not (stage in _OUTSIDE and _mounts(hook))]
        for stage in spec["hooks"]
    }
    return {**spec, "hooks": hooks}


def hides_parameters(spec: Mapping[str, Any]) -> bool:
    """Whether a hook mounts the driver's parameters anew, for no one to make device nodes.

    It makes a tmpfs, and binds a file of it over /proc/driver/nvidia/params.
    """
    return any(
        names_nvidia(hook.get("path", "")) and _PARAMS in (hook.get("args") or ())
        for hook in _of(spec, "createContainer")
    )


def _of(spec: Mapping[str, Any], stage: str) -> Iterator[Mapping[str, Any]]:
    yield from (spec.get("hooks") or {}).get(stage) or ()


def _mounts(hook: Mapping[str, Any]) -> bool:
    args = map(os.path.basename, hook.get("args") or ())
    return names_nvidia(hook.get("path", "")) or CLI in args
