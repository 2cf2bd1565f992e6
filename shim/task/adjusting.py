"""The spec of a container that is restored, where a cold boot has it changed on the way.

NVIDIA's runtime adds devices, mounts and hooks to config.json when it is called with the word
`create`, and passes everything else on to runc as it is. A restore knows no create, and would have
none of it: mounts would be missing, and the GPUs be unknown. So it is asked for that alone. Hooks
that a restore must not repeat are taken out (gpu/hooks.py). The spec as containerd made it is kept
beside it, for the cold boot that follows a failure.
"""

from __future__ import annotations

import os

from shim import log
from shim.bundle import write_atomically
from shim.errors import ThawError
from shim.gpu.hooks import names_nvidia, without_mounting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.bundle import Bundle
    from shim.runc import Runc

_KEPT = "config.cold.json"  # in the bundle


def adjust(runc: Runc, bundle: Bundle) -> None:
    """Make of config.json what a restore needs. A failure is logged: the snapshot is unfit then."""
    kept = f"{bundle.path}/{_KEPT}"
    try:
        before = bundle.spec()
        asked = names_nvidia(runc.command[0])
        if not asked and without_mounting(before) is before:
            return
        with open(bundle.config, "rb") as file:
            write_atomically(kept, file.read())
        if asked:
            runc.let_change(bundle.path)
        spec = bundle.spec()
        bundle.save(without_mounting(spec))
    except (ThawError, OSError) as error:
        log.warning("the spec is not adjusted", container=runc.id, error=error)


def give_back(bundle: Bundle) -> None:
    """Undo `adjust`; harmless if nothing was done."""
    try:
        os.replace(f"{bundle.path}/{_KEPT}", bundle.config)
    except FileNotFoundError:
        pass
