"""The driver is begun by the first thing that an engine hears, if it will be needed."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.cuda import FakeCuda
from fakes.snapshots import CONFIG, make

from shim.config import Config
from shim.restore.waking import has_gpu_state, wake
from shim.snapshot.config import SnapshotConfig
from shim.snapshot.cuda import CudaProcess, CudaState
from shim.snapshot.store import Store

NOT_INITIALIZED = 3
WITH_GPU = replace(CONFIG, gpu=CudaState([CudaProcess(1)]))


def request(tmp_path: Path, cuda: FakeCuda, name: str = "one") -> dict[str, Any]:
    settings = {"snapshots": str(tmp_path / "store"), "gpu.library": cuda.library}
    return {"verb": "read-ahead", "name": name, "config": Config(settings).as_dict()}


def save(tmp_path: Path, config: SnapshotConfig) -> Path:
    store = Store(tmp_path / "store")
    return store.folder / "snapshots" / make(store, "one", config)


def woken(request: dict[str, Any], cuda: FakeCuda) -> bool:
    """Whether the driver has been asked to begin once `wake` and its thread are through."""
    before = set(threading.enumerate())
    wake(request)
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()
    return "cuInit" in {call.name for call in cuda.calls}


def test_a_snapshot_with_gpu_state(tmp_path: Path, cuda: FakeCuda) -> None:
    save(tmp_path, WITH_GPU)
    assert woken(request(tmp_path, cuda), cuda)


def test_one_without(tmp_path: Path, cuda: FakeCuda) -> None:
    save(tmp_path, CONFIG)
    assert not woken(request(tmp_path, cuda), cuda)


@pytest.mark.parametrize("name", ["other", "auto", "../one", ""])
def test_names_of_none(tmp_path: Path, cuda: FakeCuda, name: str) -> None:
    save(tmp_path, WITH_GPU)
    assert not woken(request(tmp_path, cuda, name), cuda)


@pytest.mark.parametrize("text", ["", "[]", '{"gpu": 1}', "{}", '{"gpu": {"processes": []}}'])
def test_documents_that_say_nothing(tmp_path: Path, cuda: FakeCuda, text: str) -> None:
    (save(tmp_path, WITH_GPU) / "config.json").write_text(text)
    assert not woken(request(tmp_path, cuda), cuda)


def test_a_link_is_no_document(tmp_path: Path, cuda: FakeCuda) -> None:
    document = save(tmp_path, WITH_GPU) / "config.json"
    document.rename(tmp_path / "elsewhere")
    document.symlink_to(tmp_path / "elsewhere")
    assert has_gpu_state(str(tmp_path / "elsewhere"))
    with pytest.raises(OSError, match="symbolic links"):
        has_gpu_state(str(document))
    assert not woken(request(tmp_path, cuda), cuda)


def test_a_driver_that_fails_keeps_nobody(tmp_path: Path, cuda: FakeCuda) -> None:
    """Whoever needs it asks again, and says what it answers."""
    save(tmp_path, WITH_GPU)
    cuda.answer("cuInit", NOT_INITIALIZED)
    assert woken(request(tmp_path, cuda), cuda)
    broken = request(tmp_path, cuda)
    broken["config"]["gpu.library"] = "/nowhere/libcuda.so.1"
    wake(broken)
    wake({})
