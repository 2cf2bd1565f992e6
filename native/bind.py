"""What `cffi-gen-src exec-python` runs: shim._native from thaw.h, and from nothing else."""

from __future__ import annotations

import os

from cffi import FFI

_HEADER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "thaw.h")


def ffibuilder() -> FFI:
    """The module's declarations: the header without its preprocessor lines."""
    with open(_HEADER, encoding="utf-8") as header:
        declarations = [line for line in header if not line.startswith("#")]
    ffi = FFI()
    ffi.cdef("".join(declarations))
    ffi.set_source("shim._native", '#include "thaw.h"')
    return ffi
