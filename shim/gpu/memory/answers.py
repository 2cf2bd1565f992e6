"""What the calls of native/device.c answer, as errors."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from shim._native import ffi
from shim.errors import GpuFailed
from shim.gpu.results import result
from shim.native import check

if TYPE_CHECKING:
    from shim._native import _CData


def judge(answered: int, call: _CData, what: str) -> None:
    """Nothing if it went well; else GpuFailed with the driver's answer, or an error of our own."""
    if answered == -errno.EINVAL:
        raise ValueError(what)
    if check(answered, what):
        raise refused(answered, call[0], what)


def refused(answered: int, call: _CData, what: str) -> GpuFailed:
    """What the driver's function of that name has answered; `what` was tried."""
    name = ffi.string(call).decode() if call else "the driver"
    said = result(answered, name)
    return GpuFailed(f"{what}: {name}: {said.name}: {said.sentence}", hint=said.hint)
