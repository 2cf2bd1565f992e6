"""The GPUs of this machine, by NVML: nvidia-ml-py's `pynvml`, imported at the first question only.

NVML is initialised with every question, which costs nothing but the first time, and never shut
down: where the driver has no persistence mode, the last one to leave makes it forget the GPUs, and
finding them again takes it a second or more. Those who ask live for one checkpoint or restore.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

from shim import log
from shim.errors import Unfit
from shim.lean.values import Value

NODE = "/dev/nvidiactl"
_UUID = re.compile(r"GPU-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)

# What NVML calls them in nvml.h; the numbers are a part of its interface and never change.
_NOT_SUPPORTED, _NOT_FOUND = 3, 6
_NO_DRIVER, _NO_LIBRARY, _NO_FUNCTION, _NO_GPU = 9, 12, 13, 28
_MISMATCH = 18
_NOTHING_HERE = (_NOT_FOUND, _NO_DRIVER, _NO_LIBRARY, _NO_GPU)
_CANNOT_TELL = (_NOT_SUPPORTED, _NO_FUNCTION)
_VIRTUAL = (2, 3)  # NVML_GPU_VIRTUALIZATION_MODE_VGPU and _HOST_VGPU; 1 is a whole GPU passed on


class Gpu(Value):
    """One GPU as it is now. Sizes are bytes."""

    index: int  # NVML's: what NVIDIA_VISIBLE_DEVICES and CDI's names count by
    minor: int  # its node is /dev/nvidiaMINOR, which is mostly, but not always, the index
    uuid: str  # "GPU-" and a UUID, in small letters
    model: str
    memory: int  # all of it; 0 if it does not say, as where it shares the machine's
    free: int
    driver: str
    mig: bool = False  # it is divided into instances, or only waits for that
    virtual: bool = False  # it is a part of one that a hypervisor divides, or the one so divided
    processes: tuple[int, ...] = ()  # pids with a CUDA context that NVML lists, sorted: not all

    @property
    def uuid_bytes(self) -> bytes:
        """The UUID as the driver takes it."""
        return uuid_bytes(self.uuid)

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.model})"


def uuid_bytes(uuid: str) -> bytes:
    """The 16 bytes of "GPU-…", in the order in which they are written. Raises Unfit."""
    if not _UUID.fullmatch(uuid):
        raise Unfit(f"{uuid!a:.80} is no UUID of a GPU", hint="it looks like GPU-8-4-4-4-12 digits")
    return bytes.fromhex(uuid.removeprefix("GPU-").replace("-", ""))


def uuid_text(raw: bytes) -> str:
    """The UUID as NVML writes it, of 16 bytes."""
    digits = raw.hex()
    cuts = (0, 8, 12, 16, 20, 32)
    return "GPU-" + "-".join(digits[a:b] for a, b in pairwise(cuts))


def present() -> bool:
    """Whether an NVIDIA driver has made its device nodes: not worth a question if it has not."""
    return os.path.exists(NODE)


def gpus() -> list[Gpu]:
    """The GPUs that can be used, by index; none without a driver or its library.

    Raises Unfit if there is a driver and NVML cannot tell.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        if error.value in _NOTHING_HERE:
            return []
        raise _failed(error) from error
    found = (_usable(index, driver) for index in range(count))
    return [gpu for gpu in found if gpu is not None]


def refreshed(known: Iterable[Gpu]) -> list[Gpu]:
    """The same GPUs with the memory that is free now, which takes two calls each, not ten.

    Those that cannot be asked any more are left out. Raises Unfit as `gpus`.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise _failed(error) from error
    found = []
    for gpu in known:
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
            memory = _told(pynvml.nvmlDeviceGetMemoryInfo, handle, None)
        except pynvml.NVMLError as error:
            log.warning("a GPU cannot be used", index=gpu.index, reason=str(error))
        else:
            found.append(replace(gpu, free=int(memory.free) if memory else 0))
    return found


def _failed(error: Any) -> Unfit:
    if error.value == _MISMATCH:
        hint = "the driver was updated and the old one still runs: restart the node"
    else:
        hint = "see what nvidia-smi says on the node"
    return Unfit(f"NVML: {error!s:.200}", hint=hint)


def _usable(index: int, driver: str) -> Gpu | None:
    """One that fell off the bus, or is not for us, must not hide the others."""
    import pynvml

    try:
        return _gpu(index, driver)
    except (pynvml.NVMLError, Unfit, ValueError) as error:  # a ValueError: its name is no UTF-8
        log.warning("a GPU cannot be used", index=index, reason=str(error))
        return None


def _gpu(index: int, driver: str) -> Gpu:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    uuid = _text(pynvml.nvmlDeviceGetUUID(handle)).removeprefix("GPU-").lower()
    memory = _told(pynvml.nvmlDeviceGetMemoryInfo, handle, None)
    gpu = Gpu(
        index=index,
        minor=int(_told(pynvml.nvmlDeviceGetMinorNumber, handle, index)),
        uuid=f"GPU-{uuid}",
        model=_text(pynvml.nvmlDeviceGetName(handle)),
        memory=int(memory.total) if memory else 0,
        free=int(memory.free) if memory else 0,
        driver=driver,
        mig=bool(_told(pynvml.nvmlDeviceGetMigMode, handle, (0, 0))[0]),  # now; [1]: once reset
        virtual=_told(pynvml.nvmlDeviceGetVirtualizationMode, handle, 0) in _VIRTUAL,
        processes=_processes(handle),
    )
    uuid_bytes(gpu.uuid)
    return gpu


def _told(ask: Callable[[Any], Any], handle: Any, otherwise: Any) -> Any:
    """The answer, or `otherwise` of a GPU or a driver that does not know the question."""
    import pynvml

    try:
        return ask(handle)
    except pynvml.NVMLError as error:
        if error.value not in _CANNOT_TELL:
            raise
        return otherwise


def _processes(handle: Any) -> tuple[int, ...]:
    """Their pids as our pid namespace has them, without those that it does not see (NVIDIA's open
    kernel modules, gpu_rmapi.c: gpuGetProcWithObject). Whatever keeps NVML from listing them, the
    GPU can be used.
    """
    import pynvml

    try:
        listed = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)
    except pynvml.NVMLError:
        return ()
    return tuple(sorted({int(process.pid) for process in listed}))


def _text(told: str | bytes) -> str:
    return told.decode() if isinstance(told, bytes) else told
