"""Opening the driver's library: what is there, what is missing, and that nothing else is done."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from fakes.cuda import CALLS, FakeCuda

from shim import _native
from shim.errors import Unfit
from shim.gpu.driver import Driver


def test_a_library_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unfit, match=r"no CUDA driver: .*libnowhere\.so\.1") as caught:
        Driver.open(str(tmp_path / "libnowhere.so.1"))
    assert "570" in caught.value.hint


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("no library at all")
    with pytest.raises(Unfit, match=r"no CUDA driver: .*libcuda\.so\.1: "):
        Driver.open(str(tmp_path / "libcuda.so.1"))


@pytest.mark.parametrize("call", CALLS)
def test_a_library_that_lacks_a_call(tmp_path: Path, call: str) -> None:
    library = FakeCuda(tmp_path, without=(call,)).library
    with pytest.raises(Unfit, match=f"libcuda.so.1 is too old: it lacks {call} ") as caught:
        Driver.open(library)
    assert "570" in caught.value.hint


def test_a_library_that_lacks_many_names_them_all(tmp_path: Path) -> None:
    """As drivers before 570 do."""
    lacking = tuple(call for call in CALLS if call.startswith("cuCheckpoint"))
    library = FakeCuda(tmp_path, without=lacking).library
    with pytest.raises(Unfit) as caught:
        Driver.open(library)
    assert caught.value.message == f"{library} is too old: it lacks {', '.join(lacking)}"


def test_a_library_that_is_refused_is_given_back(tmp_path: Path) -> None:
    library = FakeCuda(tmp_path, without=("cuCheckpointProcessLock",)).library
    with pytest.raises(Unfit):
        Driver.open(library)
    assert library not in Path("/proc/self/maps").read_text()


def test_the_toolkits_stub(cuda: FakeCuda) -> None:
    cuda.answer("cuDriverGetVersion", 34)
    with pytest.raises(Unfit, match="is of no use: CUDA_ERROR_STUB_LIBRARY: ") as caught:
        Driver.open(cuda.library)
    assert "stubs" in caught.value.hint


def test_opening_asks_for_nothing_but_the_version(cuda: FakeCuda) -> None:
    driver = Driver.open(cuda.library)
    assert (driver.version, driver.storage) == (13000, False)
    assert [call.name for call in cuda.calls] == ["cuDriverGetVersion"]


def test_custom_storage_is_found_by_its_call(tmp_path: Path) -> None:
    assert Driver.open(FakeCuda(tmp_path, storage=True).library).storage


def test_nothing_of_cuda_is_needed_to_import_it() -> None:
    """Thaw runs where there is no driver; nothing is linked to one."""
    ran = subprocess.run(["ldd", _native.__file__], capture_output=True, text=True, check=True)
    assert "cuda" not in ran.stdout
