"""A PyTorch program for compute-sanitizer: says what its GPU memory holds as often as it is asked.

    python -m gpu.sanitized [DEVICE]      one line of JSON for each line that it reads

Memory, streams and a graph are those of everything.py, little of each: a tool looks at every
access.
"""

from __future__ import annotations

import json
import sys

from gpu.everything import Everything

SIZE = 1 / 16  # GiB of numbers
CACHE = 1 / 8  # GiB that nobody touches


def main(device: str = "cuda") -> None:
    """Answer until there is nothing more to read."""
    everything = Everything(SIZE, CACHE, device)
    for _ in sys.stdin:
        print(json.dumps(everything.check()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
