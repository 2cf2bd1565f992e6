"""An example worker that speaks the contract: says when it is warm, and becomes somebody new.

    worker.py                     needs SNAPSHOT_CONTROL_DIR, which the shim sets
    worker.py --print COUNT       prints COUNT lines of random numbers and tokens after that

What two clones of one snapshot would have in common otherwise is the state of every generator of
random numbers but the kernel's: Python's, NumPy's, PyTorch's, and OpenSSL's, from which TLS takes
its secrets. A generator that a program has made for itself (numpy.random.default_rng,
torch.Generator) it must seed itself.
"""

from __future__ import annotations

import json
import os
import random
import ssl
import sys
import uuid
from pathlib import Path
from typing import Any


def wait_for_restore() -> dict[str, Any]:
    """Say that this worker is warm, and wait; answers who it is from now on."""
    folder = Path(os.environ["SNAPSHOT_CONTROL_DIR"])
    # Opened before anybody is told, so that no event is missed; for both, so that it has no end.
    with open(os.open(folder / "wake", os.O_RDWR)) as wake:
        (folder / "ready-for-snapshot").touch()
        if wake.readline() == "snapshot-complete\n":
            sys.exit(0)
    identity: dict[str, Any] = json.loads((folder / "identity.json").read_text())
    return identity


def reseed(identity: dict[str, Any]) -> None:
    """Take leave of the clones: seed whatever generators there are."""
    entropy = bytes.fromhex(identity["entropy"])
    seed = int.from_bytes(entropy)
    random.seed(seed)
    ssl.RAND_add(entropy, len(entropy))
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed(np.random.SeedSequence(seed).generate_state(8))
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(seed % (1 << 64))  # of all devices


def main(arguments: list[str]) -> None:
    """Wait to be restored, then draw."""
    identity = wait_for_restore()
    before = random.random()  # noqa: S311 - what a clone would draw, too
    reseed(identity)
    count = int(arguments[1]) if arguments[:1] == ["--print"] else 1
    print(json.dumps({"generation": identity["generation"], "before": before}), flush=True)
    for _ in range(count):
        number = random.random()  # noqa: S311
        drawn = {"uuid": str(uuid.uuid4()), "random": number, "token": _token()}
        print(json.dumps(drawn), flush=True)


def _token() -> int:
    """What a sampler would draw next."""
    if "torch" in sys.modules:
        import torch

        return int(torch.multinomial(torch.ones(1 << 16), 1))
    return random.randrange(1 << 16)  # noqa: S311


if __name__ == "__main__":
    main(sys.argv[1:])
