"""The driver of a machine without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fakes.cuda import FakeCuda
from fakes.settled import eventually

from shim.gpu import processes
from shim.gpu.driver import Driver


@pytest.fixture
def driver(cuda: FakeCuda) -> Driver:
    """The driver of `cuda`, opened, not initialized."""
    return Driver.open(cuda.library)


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Calling it: a limit is from now on one for what is done to that process, and for no other.

    And only once `begun` is true of it. How long all the rest takes depends on what else the
    machine has to do.
    """
    done = processes._Call.done

    def only(pid: int, begun: Callable[[], object] = lambda: True) -> None:
        def instead(call: processes._Call[Any], until: float | None) -> bool:
            if getattr(call._act, "args", None) != (pid,):
                return done(call, None)
            eventually(lambda: call._done.is_set() or begun())
            return done(call, until)

        monkeypatch.setattr(processes._Call, "done", instead)

    return only
