"""Whether Thaw's library can move GPU memory here. Without it the driver does, only slower."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from shim.doctor.gpu import LIBRARY, VERSION
from shim.doctor.node import Node
from shim.doctor.verdict import Verdict, absent, bad, ok
from shim.errors import Unfit
from shim.gpu import preload
from shim.snapshot.store import check_owner

# Of libcuda, beyond what a checkpoint needs: virtual memory that is handed to another process.
CALLS = (
    *("cuMemCreate", "cuMemRelease", "cuMemMap", "cuMemUnmap", "cuMemSetAccess"),
    *("cuMemAddressReserve", "cuMemAddressFree", "cuMemGetAllocationGranularity"),
    *("cuMemExportToShareableHandle", "cuMemImportFromShareableHandle"),
)
_DRIVER = "until then the driver moves GPU memory, at its own speed"


def memory(
    node: Node,
    load: Callable[[str], object] = ctypes.CDLL,
    library: str = "",
) -> Iterator[Verdict]:
    """Thaw's library moves GPU memory: it loads, can be kept, and the driver has what it needs."""
    try:
        node.read(VERSION)
    except OSError:
        yield absent("no GPU here", "nothing needs to be done")
        return
    if node.config.text("gpu.memory") == "driver":
        yield absent("gpu.memory says driver", 'gpu.memory = "library" would make it faster')
        return
    yield _loads(node, library or preload.installed())
    yield _kept(Path(node.config.text("gpu.preloaded")))
    yield _driver(load)


def _loads(node: Node, library: str) -> Verdict:
    """As a container's programs do it; what ld.so has against a library, it says and goes on."""
    if not os.path.exists(library):
        return bad(f"there is no {library}", f"run install.sh again; {_DRIVER}", library)
    status, said = node.run("env", f"{preload.VARIABLE}={library}", "true")
    if status or said:
        return bad(
            f"it cannot be loaded: {said[:200] or status}",
            f"run install.sh again; {_DRIVER}",
            library,
        )
    return ok(f"{library} can be loaded", library)


def _kept(folder: Path) -> Verdict:
    try:
        if not os.path.lexists(folder):
            return ok(f"{folder} is made when it is needed", str(folder))
        check_owner(folder)
    except Unfit as error:
        return bad(error.message, error.hint, str(folder))
    count = sum(preload.is_version(name) for name in os.listdir(folder))
    return ok(
        f"{count} versions in {folder}" if count != 1 else f"one version in {folder}", str(folder)
    )


def _driver(load: Callable[[str], object]) -> Verdict:
    try:
        found = load(LIBRARY)
    except OSError as error:
        return bad(f"no {LIBRARY}: {error}", "install the driver's libraries")
    missing = [call for call in CALLS if not hasattr(found, call)]
    if missing:
        return bad(f"the driver has no {missing[0]}", f"install a newer driver; {_DRIVER}")
    return ok("the driver has all calls")
