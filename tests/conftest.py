"""Makes the bed importable: the private containerd that the demo and the tests share."""

from __future__ import annotations

import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(CHECKOUT / "runtimeclass"))
