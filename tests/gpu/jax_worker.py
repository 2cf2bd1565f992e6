"""A JAX worker: random numbers and compiled functions, in the pool that JAX takes for itself.

    python -m gpu.jax_worker GIB PORT

    GET /health               200, once it is warm
    GET /check                sums of all of it, and of what a compiled function gives

It knows nothing of Thaw. Its pool is as large as XLA_PYTHON_CLIENT_MEM_FRACTION says.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
from gpu.answering import serve

SEED = 20250101
ARRAYS = 8
SIDE = 1024
GIB = 1 << 30


class State:
    """What lies on the device that JAX has chosen."""

    def __init__(self, size: float) -> None:
        count = int(size * GIB) // 4 // ARRAYS
        keys = jax.random.split(jax.random.PRNGKey(SEED), ARRAYS + 1)
        self._arrays = [jax.random.bits(key, (count,), dtype=jnp.uint32) for key in keys[1:]]
        self._matrix = jax.random.normal(keys[0], (SIDE, SIDE)) / SIDE**0.5
        self._sums = jax.jit(_sums)
        self._network = jax.jit(_network)
        self._answers = 0

    def check(self) -> dict[str, Any]:
        """The sums, and how often they were asked for."""
        self._answers += 1
        out = self._network(self._matrix)
        return {
            "memory": [[int(part) for part in self._sums(array)] for array in self._arrays],
            "network": [int(part) for part in self._sums(out.view(jnp.uint32).ravel())],
            "platform": jax.devices()[0].platform,
            "answers": self._answers,
            "pid": os.getpid(),
        }


def _sums(numbers: Any) -> tuple[Any, Any]:
    places = jnp.arange(numbers.size, dtype=jnp.uint32)
    return numbers.sum(dtype=jnp.uint32), (numbers ^ places).sum(dtype=jnp.uint32)


def _network(matrix: Any) -> Any:
    out = matrix
    for _ in range(4):
        out = jnp.tanh(out @ matrix)
    return out


def main(size: float, port: int) -> None:
    """Fill the memory, compile, answer."""
    state = State(size)
    state.check()
    serve(port, lambda _path, _query: state.check())


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
