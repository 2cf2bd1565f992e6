"""A CUDA graph that is changed after it was made ready, as engines do that keep one for long.

It copies one block of numbers onto another and then sets a part of that. Nobody makes it ready
again: cuda.h (13.0) says of cuGraphExecMemcpyNodeSetParams, and cuGraphExecUpdate, that they fail
if "the memory operands' mappings changed", and a snapshot takes all memory away meanwhile.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from gpu.worker import sums

SIZE = 64 << 20  # bytes of each block: memory of its own, of PyTorch's allocator
SET = 1 << 20  # bytes that are set behind the copy
_ON_DEVICE = 2  # CU_MEMORYTYPE_DEVICE


class _Copy(ctypes.Structure):
    """CUDA_MEMCPY3D, of cuda.h."""

    _fields_ = (
        ("from_place", ctypes.c_size_t * 4),
        ("from_kind", ctypes.c_int),
        ("from_host", ctypes.c_void_p),
        ("from_device", ctypes.c_uint64),
        ("from_array", ctypes.c_void_p * 2),
        ("from_pitch", ctypes.c_size_t * 2),
        ("to_place", ctypes.c_size_t * 4),
        ("to_kind", ctypes.c_int),
        ("to_host", ctypes.c_void_p),
        ("to_device", ctypes.c_uint64),
        ("to_array", ctypes.c_void_p * 2),
        ("to_pitch", ctypes.c_size_t * 2),
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
        ("depth", ctypes.c_size_t),
    )


class _Set(ctypes.Structure):
    """CUDA_MEMSET_NODE_PARAMS."""

    _fields_ = (
        ("to", ctypes.c_uint64),
        ("pitch", ctypes.c_size_t),
        ("value", ctypes.c_uint),
        ("element", ctypes.c_uint),
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
    )


class _Outcome(ctypes.Structure):
    """CUgraphExecUpdateResultInfo."""

    _fields_ = (("result", ctypes.c_int), ("node", ctypes.c_void_p), ("other", ctypes.c_void_p))


class Changing:
    """Its memory, and the graph, which is made ready once."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._from = [torch.randn(SIZE // 4, device="cuda") for _ in range(3)]
        self._to = torch.zeros_like(self._from[0])
        torch.cuda.synchronize()
        self._graph, self._copy, self._set = self._built(0)
        self._ready = ctypes.c_void_p()
        made = ctypes.byref(self._ready)
        self._do("cuGraphInstantiateWithFlags", made, self._graph, ctypes.c_uint64(0))

    def check(self) -> list[list[int]]:
        """What it gives once each of its nodes was changed, and after an update by a whole graph;
        then as it was made. RuntimeError: the driver did not do it."""
        self._change(1)
        changed = self._launched()
        other, *_ = self._built(2)
        outcome = _Outcome()
        self._do("cuGraphExecUpdate_v2", self._ready, other, ctypes.byref(outcome))
        updated = self._launched()
        self._do("cuGraphDestroy", other)
        self._change(0)
        return [changed, updated, self._launched()]

    def _built(self, which: int) -> tuple[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]:
        graph, first, second = (ctypes.c_void_p() for _ in range(3))
        copy, set_to, here = self._copying(which), self._setting(which), self._context()
        self._do("cuGraphCreate", ctypes.byref(graph), 0)
        made, what = ctypes.byref(first), ctypes.byref(copy)
        self._do("cuGraphAddMemcpyNode", made, graph, None, ctypes.c_size_t(0), what, here)
        made, what, after = ctypes.byref(second), ctypes.byref(set_to), ctypes.byref(first)
        self._do("cuGraphAddMemsetNode", made, graph, after, ctypes.c_size_t(1), what, here)
        return graph, first, second

    def _change(self, which: int) -> None:
        copy, set_to, here = self._copying(which), self._setting(which), self._context()
        node, what = self._copy, ctypes.byref(copy)
        self._do("cuGraphExecMemcpyNodeSetParams", self._ready, node, what, here)
        node, what = self._set, ctypes.byref(set_to)
        self._do("cuGraphExecMemsetNodeSetParams", self._ready, node, what, here)

    def _copying(self, which: int) -> _Copy:
        return _Copy(
            from_kind=_ON_DEVICE,
            from_device=self._from[which].data_ptr(),
            to_kind=_ON_DEVICE,
            to_device=self._to.data_ptr(),
            width=SIZE,
            height=1,
            depth=1,
        )

    def _setting(self, which: int) -> _Set:
        at = self._to.data_ptr() + which * SET
        return _Set(to=at, value=which + 1, element=4, width=SET // 4, height=1)

    def _context(self) -> ctypes.c_void_p:
        torch.cuda.current_stream().synchronize()  # this thread has the context now
        here = ctypes.c_void_p()
        self._do("cuCtxGetCurrent", ctypes.byref(here))
        return here

    def _launched(self) -> list[int]:
        self._to.zero_()
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        self._do("cuGraphLaunch", self._ready, stream)
        torch.cuda.synchronize()
        return sums(self._to.view(torch.int32))

    def _do(self, call: str, *arguments: Any) -> None:
        result = getattr(self._cuda, call)(*arguments)
        if result != 0:
            raise RuntimeError(f"{call}: CUDA error {result}")
