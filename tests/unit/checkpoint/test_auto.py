"""`auto` in the engine: who makes the snapshot, when, and under which name."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fakes.dumping import work_of
from fakes.nvml import A100, H100, FakeNvml, machine
from fakes.settled import PATIENCE, eventually

from shim import names
from shim.checkpoint import auto
from shim.checkpoint.auto import Making, derived_name
from shim.config import Config
from shim.errors import BadName, FailedPrecondition, GpuLost, NotFound, StoreFull, Unfit
from shim.snapshot.lease import Lease
from shim.work import Work

NAME = "auto-1"
ID = "0123456789abcdef"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "derived_name", lambda _work: NAME)
    monkeypatch.setattr(auto, "_PAUSE", 0.02)
    monkeypatch.setattr(auto, "_RESERVE", 0.0)


@pytest.fixture
def init() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


class Asked:
    """The request of one container's engine; `say_warm` makes its probe answer."""

    def __init__(
        self,
        folder: Path,
        init: int,
        *,
        anew: bool = False,
        make: str = "auto",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.store = folder / "store"
        self.store.mkdir(exist_ok=True)
        self._flag = folder / "warm"
        ready = {"kind": "file", "target": str(self._flag)}
        details = {"pid": init, "make": make, "ready": ready, "anew": anew}
        config = Config({"snapshots": str(self.store), **(settings or {})})
        self.spec: dict[str, Any] = {}
        bundle = SimpleNamespace(spec=lambda: self.spec)
        self.work = cast(
            Work, SimpleNamespace(id="c", details=details, config=config, bundle=bundle)
        )

    def say_warm(self) -> None:
        self._flag.touch()

    def publish(self) -> None:
        (self.store / names.SNAPSHOTS / ID).mkdir(parents=True)
        (self.store / names.NAMES).mkdir()
        (self.store / names.NAMES / NAME).write_text(f"{ID}\n")

    def leases(self) -> list[str]:
        folder = self.store / "leases"
        return os.listdir(folder) if folder.is_dir() else []


@pytest.fixture
def asked(tmp_path: Path, init: subprocess.Popen[bytes]) -> Asked:
    return Asked(tmp_path, init.pid)


class Waiting:
    """`Making.wait` in another thread."""

    def __init__(self, work: Work) -> None:
        self.making = Making()
        self._result: list[Any] = []
        self._thread = threading.Thread(target=self._run, args=(work,))
        self._thread.start()

    def _run(self, work: Work) -> None:
        try:
            self._result.append(self.making.wait(work))
        except BaseException as error:  # noqa: BLE001
            self._result.append(error)

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(PATIENCE)
        self.making.release()
        return self._result[0]


def test_it_waits_until_the_worker_is_warm(asked: Asked) -> None:
    waiting = Waiting(asked.work)
    eventually(lambda: asked.leases() == [NAME])
    assert waiting.waits
    asked.say_warm()
    eventually(lambda: not waiting.waits)
    assert asked.leases() == [NAME], "held for the dump that follows"
    assert waiting.result() == {"name": NAME, "because": ""}
    assert asked.leases() == []


def test_under_a_name_that_the_pod_gives(
    tmp_path: Path, init: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "derived_name", lambda _work: pytest.fail("it has a name"))
    asked = Asked(tmp_path, init.pid, make="warm")
    asked.say_warm()
    waiting = Waiting(asked.work)
    assert waiting.result() == {"name": "warm", "because": ""}
    other = Lease.take(asked.store, "warm")
    assert other is not None, "it was the lease on that name, and is free again"
    other.release()
    with pytest.raises(BadName):
        Making().wait(Asked(tmp_path, init.pid, make="../warm").work)


def test_there_is_one(asked: Asked) -> None:
    asked.publish()
    assert Making().wait(asked.work)["because"] == f"{NAME} is there"
    assert asked.leases() == []


def test_somebody_else_makes_it(asked: Asked) -> None:
    other = Lease.take(asked.store, NAME)
    assert other is not None
    waiting = Waiting(asked.work)
    asked.say_warm()
    time.sleep(0.1)
    assert waiting.waits
    asked.publish()
    assert waiting.result() == {"name": "", "because": f"{NAME} is there"}
    other.release()


def test_somebody_else_gives_up(asked: Asked) -> None:
    other = Lease.take(asked.store, NAME)
    assert other is not None
    waiting = Waiting(asked.work)
    asked.say_warm()
    other.release()
    assert waiting.result() == {"name": NAME, "because": ""}


def test_somebody_was_quicker_all_the_same(asked: Asked) -> None:
    """As on a store whose clock jumped: the lease was lost, or is no use any more."""
    waiting = Waiting(asked.work)
    eventually(lambda: asked.leases() == [NAME])
    asked.publish()
    asked.say_warm()
    assert waiting.result()["because"] == f"somebody else has made {NAME}"


def test_anew(tmp_path: Path, init: subprocess.Popen[bytes]) -> None:
    asked = Asked(tmp_path, init.pid, anew=True)
    asked.publish()
    asked.say_warm()
    assert Waiting(asked.work).result() == {"name": NAME, "because": ""}
    other = Lease.take(asked.store, NAME)
    assert other is not None
    assert "somebody else is making" in Waiting(asked.work).result()["because"]
    other.release()


@pytest.mark.parametrize("leased", [False, True])
def test_the_container_ends(asked: Asked, init: subprocess.Popen[bytes], leased: bool) -> None:
    other = Lease.take(asked.store, NAME) if leased else None
    waiting = Waiting(asked.work)
    init.kill()
    init.wait()
    assert isinstance(waiting.result(), NotFound)
    if other is not None:
        other.release()
    assert asked.leases() == []


def test_the_last_room_is_not_taken(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "_RESERVE", 1.1)
    asked.say_warm()
    error = Waiting(asked.work).result()
    assert isinstance(error, StoreFull)
    assert "thaw gc" in error.hint


def waited(folder: Path, init: int, make: str, **settings: Any) -> Making:
    """A worker on a GPU that has become warm in a pod of its own."""
    asked = Asked(folder, init, make=make, settings=settings)
    asked.spec = {"linux": {"devices": [node(0)]}}
    asked.say_warm()
    making = Making()
    try:
        assert making.wait(asked.work)["name"] == (NAME if make == "auto" else make)
        making.lose(asked.work, GpuLost("no room"))
    finally:
        making.release()
    return making


@pytest.mark.parametrize("make", ["auto", "warm"])
def test_no_second_worker_is_lost(
    tmp_path: Path,
    init: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    make: str,
) -> None:
    """The next pod's is left alone, unless something is different with it."""
    name = NAME if make == "auto" else make
    waited(tmp_path, init.pid, make)
    with pytest.raises(FailedPrecondition, match=f"no snapshot {name} is made: .* no room"):
        waited(tmp_path, init.pid, make)
    assert Asked(tmp_path, init.pid).leases() == []
    waited(tmp_path, init.pid, make, **{"gpu.wait": 60.0})
    if make != "auto":
        monkeypatch.setattr(auto, "derived_name", lambda _work: "auto-2")
        waited(tmp_path, init.pid, make)
        waited(tmp_path, init.pid, "another")


def test_nor_one_that_has_waited_for_the_first(
    tmp_path: Path, init: subprocess.Popen[bytes]
) -> None:
    """The pods of a deployment come together, and make their snapshot in turn."""
    asked = Asked(tmp_path, init.pid)
    asked.spec = {"linux": {"devices": [node(0)]}}
    asked.say_warm()
    first = Making()
    assert first.wait(asked.work)["name"] == NAME
    second = Waiting(asked.work)
    first.lose(asked.work, GpuLost("no room"))
    first.release()
    assert isinstance(second.result(), FailedPrecondition)
    asked.publish()
    assert Making().wait(asked.work)["because"] == f"{NAME} is there", "by another node, perhaps"


def test_a_worker_that_is_like_no_other(
    tmp_path: Path, init: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no name can be derived, another pod's may have been a different one."""

    def none(_work: Work) -> str:
        raise FailedPrecondition("containerd does not say from which image this container is")

    monkeypatch.setattr(auto, "derived_name", none)
    waited(tmp_path, init.pid, "warm")
    waited(tmp_path, init.pid, "warm")


def node(minor: int) -> dict[str, Any]:
    return {"path": f"/dev/nvidia{minor}", "type": "c", "major": 195, "minor": minor}


def test_names_go_by_the_containers_own_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node of another model has another snapshot; what else is in a machine does not matter."""
    monkeypatch.setattr(auto, "image_of", lambda *_: ("image", "sha256:aa"))
    nvml = FakeNvml(tmp_path)
    nvml.use(monkeypatch)

    work = work_of(tmp_path)
    spec = work.bundle.spec()

    def name(*minors: int) -> str:
        linux = {**spec["linux"], "devices": [node(minor) for minor in minors]}
        work.bundle.save({**spec, "linux": linux})
        return derived_name(work)

    nvml.has(machine(H100, A100, H100))
    assert name(0) == name(2)
    assert len({name(), name(0), name(1), name(0, 2)}) == 4
    none, one = name(), name(0)
    nvml.has(machine(H100))
    assert (name(), name(0)) == (none, one)
    nvml.has([])
    assert name() == none
    with pytest.raises(Unfit, match="no GPU '/dev/nvidia0' here"):
        name(0)
