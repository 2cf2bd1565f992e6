"""Shapes of Qwen3's models: what a worker with random weights is made from."""

from __future__ import annotations

from typing import NamedTuple

VOCABULARY = 151936
HEAD = 128


class Shape(NamedTuple):
    """The numbers of a config.json."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    shared: int  # heads of keys and values
    tied: bool  # input and output have the same weights


SHAPES = {
    "tiny": Shape(256, 512, 4, 4, 2, True),  # Qwen has none: to try these tests
    "0.6B": Shape(1024, 3072, 28, 16, 8, True),
    "4B": Shape(2560, 9728, 36, 32, 8, True),
    "8B": Shape(4096, 12288, 36, 32, 8, False),
    "14B": Shape(5120, 17408, 40, 40, 8, False),
}
