"""What `cffi-gen-src exec-python` runs: shim._native from these headers, and no others."""

from __future__ import annotations

import os

from cffi import FFI

_HEADERS = ("thaw.h", "checkpoint.h", "direct.h")


def ffibuilder() -> FFI:
    """The module's declarations: the headers without their preprocessor lines."""
    folder = os.path.dirname(os.path.abspath(__file__))
    ffi = FFI()
    for name in _HEADERS:
        with open(os.path.join(folder, name), encoding="utf-8") as header:
            ffi.cdef("".join(line for line in header if not line.startswith("#")))
    ffi.set_source("shim._native", "".join(f'#include "{name}"\n' for name in _HEADERS))
    return ffi
