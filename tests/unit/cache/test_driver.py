"""The holder's driver: what it pins the cache's memory with, if there is a GPU to do it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fakes.cuda import FakeCuda
from fakes.nvml import H100, numbered

from shim.cache.holder import Driver
from shim.cache.store import Store
from shim.gpu.nvml import Gpu

from .conftest import SEGMENT, Saved, taken

pytestmark = pytest.mark.usefixtures("nobody_is_left")

OPERATING_SYSTEM = 304


@pytest.mark.parametrize("there", [True, False])
def test_no_gpu_and_no_driver(cache: Store, save: Saved, cuda: FakeCuda, there: bool) -> None:
    """Then it is memory like any other."""
    look: Callable[[], list[Gpu]] = list if there else lambda: [numbered(H100, 0)]
    driver = Driver(cuda.library if there else "/none/libcuda.so.1", look)
    cache._pin = driver.pin
    taken(cache, save("one", ("x", 1)))
    assert cache.accounts().pinned == 0
    driver.close()


def test_it_is_pinned_later(cache: Store, save: Saved, cuda: FakeCuda) -> None:
    cuda.answer("cuMemHostRegister_v2", OPERATING_SYSTEM)
    driver = Driver(cuda.library, lambda: [numbered(H100, 0)])
    cache._pin = driver.pin
    taken(cache, save("one", ("x", 1)))
    assert cache.accounts().pinned == 0
    cache.pin_rest()
    cache.pin_rest()
    assert cache.accounts().pinned == SEGMENT
    cache.close()
    driver.close()


def test_what_cannot_be_pinned_is_tried_once_for_all(
    cache: Store, save: Saved, cuda: FakeCuda
) -> None:
    """Not each GiB in turn, while restores wait."""
    taken(cache, save("one", ("x" * 100, 1)))
    driver = Driver(cuda.library, lambda: [numbered(H100, 0)])
    cache._pin = driver.pin
    cuda.answer("cuMemHostRegister_v2", OPERATING_SYSTEM)
    cuda.trace()
    cache.pin_rest()
    assert cuda.count("cuMemHostRegister_v2") == 1
    assert cache.accounts().pinned == 0
    cache.pin_rest()
    assert cache.accounts().pinned == cache.accounts().held == 2 * SEGMENT
    cache.close()
    driver.close()


def test_a_gpu_that_cannot_be_used(cache: Store, save: Saved, cuda: FakeCuda) -> None:
    """As it is full, say: the next one will do for pinning."""
    cuda.answer("cuDevicePrimaryCtxRetain", OPERATING_SYSTEM)
    driver = Driver(cuda.library, lambda: [numbered(H100, gpu) for gpu in (0, 1)])
    cache._pin = driver.pin
    taken(cache, save("one", ("x", 1)))
    assert cache.accounts().pinned == SEGMENT
    cache.close()
    driver.close()
