"""The driver's calls, on a driver of files: what it is asked, and what becomes of its answers."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakes.cuda import STORAGE, VARIABLE, FakeCuda
from fakes.cuda_worker import Workers

from shim.errors import GpuFailed, Unfit
from shim.gpu.driver import Driver
from shim.gpu.results import OPERATING_SYSTEM, RESULTS

PID = 4242
NOBODY = (1 << 22) + 1  # the kernel's largest pid and one more
OLD, NEW, OTHER = b"\x01" * 16, b"\x02" * 16, b"\xff" * 16
PREFIX = "cuCheckpointProcess"
VERBS: dict[str, Callable[[Driver], object]] = {
    f"{PREFIX}GetState": lambda driver: driver.state(PID),
    f"{PREFIX}GetRestoreThreadId": lambda driver: driver.restore_thread(PID),
    f"{PREFIX}Lock": lambda driver: driver.lock(PID, 10),
    f"{PREFIX}Checkpoint": lambda driver: driver.checkpoint(PID),
    f"{PREFIX}Restore": lambda driver: driver.restore(PID),
    f"{PREFIX}Unlock": lambda driver: driver.unlock(PID),
}
CHANGES = ["Lock", "Checkpoint", "Restore", "Unlock"]


@pytest.fixture
def newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A world of a driver with custom storage, and one process."""
    made = FakeCuda(tmp_path / "newest", version=13040, storage=True)
    monkeypatch.setenv(VARIABLE, str(made.folder))
    made.add(PID)
    return made


def older(folder: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> tuple[FakeCuda, Driver]:
    made = FakeCuda(folder / str(version), version=version)
    monkeypatch.setenv(VARIABLE, str(made.folder))
    return made, Driver.open(made.library)


# ---- cuInit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", VERBS)
def test_nothing_is_asked_before_init(cuda: FakeCuda, driver: Driver, call: str) -> None:
    """The driver would say NOT_INITIALIZED, as the fake one does."""
    needs = {"Checkpoint": "locked", "Unlock": "locked", "Restore": "checkpointed"}
    cuda.add(PID, needs.get(call.removeprefix(PREFIX), "running"))
    VERBS[call](driver)
    VERBS["cuCheckpointProcessGetState"](driver)
    made = [(made.name, made.result) for made in cuda.calls]
    state = (f"{PREFIX}GetState", 0)
    assert made == [("cuDriverGetVersion", 0), ("cuInit", 0), (call, 0), state]


def test_init_is_done_once_and_waited_for(cuda: FakeCuda, driver: Driver) -> None:
    cuda.add(PID)
    cuda.delay("cuInit", 0.1)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: driver.state(PID), range(8))) == {"running"}
    _, init, *others = cuda.calls
    assert init.name == "cuInit"
    assert {call.name for call in others} == {f"{PREFIX}GetState"}
    assert all(call.begun >= init.ended for call in others)


@pytest.mark.parametrize("number", [3, 100, 802, 803, 999])
def test_an_init_that_fails(cuda: FakeCuda, driver: Driver, number: int) -> None:
    cuda.add(PID)
    cuda.answer("cuInit", number)
    said = RESULTS[number]
    with pytest.raises(GpuFailed) as caught:
        driver.lock(PID, 1)
    assert caught.value.message == f"cuInit: {said.name}: {said.sentence}"
    assert caught.value.hint == said.hint
    assert cuda.state(PID) == "running"
    assert [call.name for call in cuda.calls] == ["cuDriverGetVersion", "cuInit"]
    driver.lock(PID, 1)  # it may have been a matter of time
    assert cuda.state(PID) == "locked"


# ---- the calls -------------------------------------------------------------------------------


def test_the_whole_way(cuda: FakeCuda, driver: Driver) -> None:
    cuda.add(PID)
    seen = [driver.state(PID)]
    driver.lock(PID, 1.5)
    seen.append(driver.state(PID))
    driver.checkpoint(PID)
    seen.append(driver.state(PID))
    driver.restore(PID, [(OLD, NEW)])
    seen.append(driver.state(PID))
    driver.unlock(PID)
    seen.append(driver.state(PID))
    assert seen == ["running", "locked", "checkpointed", "locked", "running"]
    assert cuda.asked() == [f"{change} {PID}" for change in CHANGES]
    assert [call.result for call in cuda.calls] == [0] * len(cuda.calls)


def test_the_restore_thread(cuda: FakeCuda, driver: Driver) -> None:
    cuda.add(PID)
    assert driver.restore_thread(PID) == PID + 1


@pytest.mark.parametrize(
    "state", ["running", "locked", "checkpointed", "failed", "checkpointing", "restoring"]
)
def test_every_state(cuda: FakeCuda, driver: Driver, state: str) -> None:
    cuda.add(PID, state)
    assert driver.state(PID) == state


def test_a_state_of_the_future(cuda: FakeCuda, driver: Driver) -> None:
    cuda.add(PID, "6")
    with pytest.raises(GpuFailed, match=f"GetState of process {PID}: state 6"):
        driver.state(PID)


@pytest.mark.parametrize("number", [1, 3])
def test_a_process_that_the_driver_does_not_know(
    cuda: FakeCuda, driver: Driver, number: int
) -> None:
    cuda.answer("GetState", number)
    assert driver.state(PID) is None


def test_a_process_that_has_never_been(driver: Driver) -> None:
    assert driver.state(NOBODY) is None
    for call, verb in VERBS.items():
        if call != f"{PREFIX}GetState":
            with pytest.raises(GpuFailed, match=r"NOT_INITIALIZED|OPERATING_SYSTEM"):
                verb(driver)


def test_a_process_that_has_ended(cuda: FakeCuda, driver: Driver) -> None:
    """The driver's word for that is one for other things, too: those must not be taken for it."""
    cuda.answer("GetState", OPERATING_SYSTEM, always=True)
    assert driver.state(NOBODY) is None
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert driver.state(ended.pid) is None, "a zombie"
    assert driver.state(ended.pid) is None
    with pytest.raises(GpuFailed, match=f"GetState of process {os.getpid()}: .*OPERATING_SYSTEM"):
        driver.state(os.getpid())


def test_processes_with_their_own_state(cuda: FakeCuda, driver: Driver) -> None:
    """As the driver has it: who has called cuInit is known, until it ends, in the midst of a call
    as well."""
    with Workers(cuda, 1, real=True) as workers, subprocess.Popen(["sleep", "1000"]) as other:
        [pid] = workers.pids
        assert (driver.state(pid), driver.state(other.pid)) == ("running", None)
        with pytest.raises(GpuFailed, match="NOT_INITIALIZED"):
            driver.lock(other.pid, 1)
        other.kill()
        driver.lock(pid, 1)
        assert driver.state(pid) == "locked"
        cuda.delay("Checkpoint", 1000)
        killing = threading.Thread(target=kill_over_it, args=(cuda, workers, pid))
        killing.start()
        with pytest.raises(GpuFailed, match="OPERATING_SYSTEM"):
            driver.checkpoint(pid)
        killing.join()
        assert driver.state(pid) is None


def kill_over_it(cuda: FakeCuda, workers: Workers, pid: int) -> None:
    while not cuda.under_way("Checkpoint", pid):
        time.sleep(0.01)
    workers.kill(pid)


@pytest.mark.parametrize(
    ("seconds", "milliseconds"),
    [
        *((1, 1000), (0.0001, 1), (0, 1), (-3, 1), (2.0005, 2001)),
        *((1e9, 2**32 - 1), (float("inf"), 2**32 - 1)),
    ],
)
def test_the_time_of_a_lock(
    cuda: FakeCuda, driver: Driver, seconds: float, milliseconds: int
) -> None:
    """Never none, which would be for ever."""
    cuda.add(PID)
    driver.lock(PID, seconds)
    assert cuda.calls[-1].detail == str(milliseconds)


def test_a_lock_in_vain(cuda: FakeCuda, driver: Driver) -> None:
    cuda.add(PID)
    cuda.answer("Lock", 600)
    with pytest.raises(GpuFailed, match=r"CUDA_ERROR_NOT_READY: .*thaw\.dev/quiesce"):
        driver.lock(PID, 1)
    assert driver.state(PID) == "running"


@pytest.mark.parametrize("change", CHANGES)
def test_the_wrong_state(cuda: FakeCuda, driver: Driver, change: str) -> None:
    cuda.add(PID, "failed")
    with pytest.raises(GpuFailed, match=f"{change} of process {PID}: CUDA_ERROR_ILLEGAL_STATE"):
        VERBS[f"{PREFIX}{change}"](driver)
    assert cuda.state(PID) == "failed"


# ---- other GPUs ------------------------------------------------------------------------------


def test_pairs(cuda: FakeCuda, driver: Driver) -> None:
    """All of them, in their order, also those that stay."""
    cuda.add(PID, "checkpointed")
    driver.restore(PID, [(OLD, NEW), (NEW, OLD), (OTHER, OTHER)])
    told = ",".join(f"{a.hex()}>{b.hex()}" for a, b in [(OLD, NEW), (NEW, OLD), (OTHER, OTHER)])
    assert cuda.calls[-1].detail == told


@pytest.mark.parametrize("version", [12080, 13000])
def test_pairs_that_move_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """No driver needs them, and those that know no pairs refuse them."""
    cuda, driver = older(tmp_path, monkeypatch, version)
    cuda.add(PID, "checkpointed")
    driver.restore(PID, [(OLD, OLD), (NEW, NEW)])
    assert (cuda.calls[-1].detail, cuda.state(PID)) == ("", "locked")


@pytest.mark.parametrize(("version", "named"), [(12080, "12.8"), (12090, "12.9")])
def test_a_driver_that_knows_no_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, named: str
) -> None:
    cuda, driver = older(tmp_path, monkeypatch, version)
    cuda.add(PID, "checkpointed")
    with pytest.raises(Unfit, match=rf"CUDA {named}\) cannot restore onto other GPUs") as caught:
        driver.restore(PID, [(OLD, NEW)])
    assert "580" in caught.value.hint
    assert cuda.asked() == []


@pytest.mark.parametrize("pair", [(OLD[1:], NEW), (OLD, NEW * 2), (b"", b"")])
def test_what_is_no_uuid(cuda: FakeCuda, driver: Driver, pair: tuple[bytes, bytes]) -> None:
    cuda.add(PID, "checkpointed")
    with pytest.raises(ValueError, match="16 bytes"):
        driver.restore(PID, [(OLD, NEW), pair])
    assert cuda.asked() == []


# ---- what the driver answers -----------------------------------------------------------------


@pytest.mark.parametrize("number", [number for number in RESULTS if number])
def test_every_answer_of_every_call(cuda: FakeCuda, driver: Driver, number: int) -> None:
    cuda.add(PID)
    said = RESULTS[number]
    for call, verb in VERBS.items():
        if call == f"{PREFIX}GetState" and number in (1, 3, OPERATING_SYSTEM):
            continue  # that it does not know the process
        cuda.answer(call, number)
        with pytest.raises(GpuFailed) as caught:
            verb(driver)
        assert caught.value.message == f"{call} of process {PID}: {said.name}: {said.sentence}"
        assert bool(caught.value.hint) >= bool(said.hint)
    assert cuda.state(PID) == "running"


def test_an_answer_of_the_future(cuda: FakeCuda, driver: Driver) -> None:
    cuda.answer("Restore", 4711)
    with pytest.raises(GpuFailed, match=f"Restore of process {PID}: CUresult 4711: .*newer"):
        driver.restore(PID)


def test_a_hint_of_the_call(cuda: FakeCuda, driver: Driver) -> None:
    """The same number means other things to do."""
    cuda.answer("Checkpoint", 2)
    cuda.answer("Restore", 2)
    with pytest.raises(GpuFailed, match="memory limit"):
        driver.checkpoint(PID)
    with pytest.raises(GpuFailed, match="another process has the GPU's memory"):
        driver.restore(PID)


# ---- custom storage --------------------------------------------------------------------------


def test_memory_that_we_copy(newest: FakeCuda) -> None:
    driver = Driver.open(newest.library)
    driver.lock(PID, 1)
    with driver.begin_checkpoint(PID) as out:
        assert driver.state(PID) == "checkpointing"
        sizes = [(at.address, at.size) for at in out.mappings]
        assert sizes == [(0x7F0000000000, 2 << 20), (0x7F0100000000, 4 << 20)]
        assert all(at.stream for at in out.mappings)
    assert driver.state(PID) == "checkpointed"
    with driver.begin_restore(PID, [(OLD, NEW)]) as back:
        assert driver.state(PID) == "restoring"
        assert len(back.mappings) == 2
    assert driver.state(PID) == "locked"
    assert [call.detail for call in newest.calls if call.short in ("Checkpoint", "Restore")] == [
        "storage",
        f"{OLD.hex()}>{NEW.hex()},storage",
    ]


def test_a_driver_that_could_leave_it_to_us_need_not(newest: FakeCuda) -> None:
    driver = Driver.open(newest.library)
    driver.lock(PID, 1)
    driver.checkpoint(PID)
    driver.restore(PID, [(OLD, NEW)])
    driver.unlock(PID)
    assert driver.state(PID) == "running"
    assert STORAGE not in [call.name for call in newest.calls]


def test_an_operation_is_completed_whatever_happens(newest: FakeCuda) -> None:
    driver = Driver.open(newest.library)
    newest.add(PID, "locked")
    with pytest.raises(KeyError), driver.begin_checkpoint(PID):
        raise KeyError
    assert driver.state(PID) == "checkpointed"


def test_storage_that_fails(newest: FakeCuda) -> None:
    driver = Driver.open(newest.library)
    newest.add(PID, "locked")
    newest.answer("Checkpoint", 201)
    newest.answer("Restore", 201)
    newest.answer(STORAGE, 900)
    with pytest.raises(GpuFailed, match=r"Checkpoint of process .*CUDA_ERROR_INVALID_CONTEXT"):
        driver.begin_checkpoint(PID)
    with pytest.raises(GpuFailed, match=r"Restore of process .*CUDA_ERROR_INVALID_CONTEXT"):
        driver.begin_restore(PID)
    with (
        pytest.raises(GpuFailed, match=f"{STORAGE} of process {PID}: .*_CAPTURE_UNSUPPORTED"),
        driver.begin_checkpoint(PID),
    ):
        pass


def test_a_driver_without_storage(cuda: FakeCuda, driver: Driver) -> None:
    cuda.add(PID, "locked")
    for begin in (driver.begin_checkpoint, driver.begin_restore):
        with pytest.raises(Unfit, match=r"does all copying .* itself .*615"):
            begin(PID)
    assert cuda.asked() == []
