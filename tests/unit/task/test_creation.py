"""From a Create request to a container: what is written, decided, and left after an error."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.pod import Behind, Pod, make_bundle, open_gate

from shim.errors import (
    BadAnnotation,
    BadName,
    Denied,
    InvalidArgument,
    NoSuchSnapshot,
    RuntimeFailed,
)
from shim.proto import task_pb as pb
from shim.task.engine import Engine

FOREVER = ("sleep", "1000")
SNAPSHOT = "thaw.dev/snapshot"
ON_FAILURE = "thaw.dev/on-failure"
NAME = "io.kubernetes.cri.container-name"
TYPE = "io.kubernetes.cri.container-type"
GPU = {
    "linux": {
        "namespaces": [{"type": "pid"}, {"type": "mount"}],
        "devices": [{"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0}],
    }
}


def annotated(pod: Pod, **notes: str) -> dict[str, Any]:
    pod.snapshot("warm")
    return {"annotations": notes}


def test_criu_is_steered_by_a_file_of_ours(pod: Pod) -> None:
    """The pod's own would run its action-script as root on the host."""
    evil = {"annotations": {"org.criu.config": "/pod/evil.conf", "other": "stays"}}
    container = pod.create("c", *FOREVER, spec=evil)
    spec = json.loads((pod.folder / "bundles/c/config.json").read_text())
    path = f"{pod.folder}/state/test/c/criu.conf"
    assert spec["annotations"] == {"org.criu.config": path, "other": "stays"}
    assert Path(path).read_text() == ""
    assert container.folder == os.path.dirname(path)


def test_the_containers_place(pod: Pod) -> None:
    container = pod.create("c", *FOREVER)
    folder = Path(container.folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert os.readlink(folder / "shim.sock") == pod.node.host.socket
    assert json.loads((pod.folder / "bundles/c/options.json").read_text())["Root"] == str(
        pod.folder / "runc"
    )


def test_a_place_that_is_left_from_before_is_taken_over(pod: Pod) -> None:
    folder = pod.folder / "state/test/c"
    folder.mkdir(parents=True)
    (folder / "shim.sock").symlink_to("/old")
    (folder / "criu.conf").write_text("action-script /old")
    pod.create("c", *FOREVER)
    assert os.readlink(folder / "shim.sock") == pod.node.host.socket
    assert (folder / "criu.conf").read_text() == ""


@pytest.mark.parametrize(
    ("notes", "restored"),
    [
        ({}, False),
        ({SNAPSHOT: "warm"}, True),  # ctr run --annotation
        ({SNAPSHOT: "warm", NAME: "main", TYPE: "container"}, True),
        ({SNAPSHOT: "warm", TYPE: "sandbox"}, False),
        ({SNAPSHOT + ".main": "warm", NAME: "main"}, True),
        ({SNAPSHOT + ".main": "warm", NAME: "sidecar"}, False),
        ({SNAPSHOT + ".main": "warm"}, False),
    ],
)
def test_who_is_restored(pod: Pod, plays: Any, notes: dict[str, str], restored: bool) -> None:
    container = pod.create("c", *FOREVER, spec=annotated(pod, **notes))
    assert (container.restoration is not None) == restored
    assert (container.init.pid == 0) == restored
    assert ("create" in pod.verbs()) != restored


BAD = [
    ("cold", NoSuchSnapshot, "NoSuchSnapshot"),
    ("../warm", BadName, "BadSnapshotName"),
    ("warm@sha256", BadName, "BadSnapshotName"),
    ("registry/warm", BadName, "BadSnapshotName"),
    ("warm:1", BadName, "BadSnapshotName"),
    ("auto", Denied, "Denied"),  # nobody has allowed it
    ("r.example/warm:1", Denied, "Denied"),
    ("WARM", BadName, "BadSnapshotName"),
    ("", BadName, "BadSnapshotName"),
    ("x" * 64, BadName, "BadSnapshotName"),
]


@pytest.mark.parametrize(("name", "error", "reason"), BAD)
def test_a_name_that_leads_nowhere(
    pod: Pod, logged: Callable[[], str], name: str, error: type[Exception], reason: str
) -> None:
    container = pod.create("c", *FOREVER, spec=annotated(pod, **{SNAPSHOT: name}))
    assert container.init.pid > 0, "it boots cold"
    (line,) = [line for line in logged().splitlines() if "booting cold" in line]
    assert f"reason={reason}" in line
    assert "hint=" in line
    strict = annotated(pod, **{SNAPSHOT: name, ON_FAILURE: "fail"})
    with pytest.raises(error):
        pod.create("d", *FOREVER, spec=strict)
    assert os.listdir(pod.folder / "state/test") == ["c"]


def test_on_failure_is_one_of_two_words(pod: Pod, logged: Callable[[], str]) -> None:
    spec = annotated(pod, **{SNAPSHOT: "warm", ON_FAILURE: "panic"})
    container = pod.create("c", *FOREVER, spec=spec)
    assert container.init.pid > 0
    assert f"reason={BadAnnotation.reason}" in logged()


def test_the_sandbox_of_a_pod_that_is_restored_warms_an_engine(pod: Pod, plays: Any) -> None:
    pod.create("s", *FOREVER, spec=annotated(pod, **{SNAPSHOT: "warm", TYPE: "sandbox"}))
    spare = pod.node.host.engines._spare["warm"].engine
    notes = {SNAPSHOT: "warm", TYPE: "container", NAME: "main"}
    container = pod.create("c", *FOREVER, spec=annotated(pod, **notes))
    assert container.pids() == [spare.pid]


@pytest.mark.parametrize("wrong", [{f"{ON_FAILURE}.main": "panic"}, {SNAPSHOT + ".main": "gone"}])
def test_a_container_that_is_not_restored_leaves_no_engine(
    pod: Pod, plays: Any, wrong: dict[str, str]
) -> None:
    """It may have the GPU's memory by now, and the cold boot needs that."""
    sandbox = annotated(pod, **{SNAPSHOT: "warm", TYPE: "sandbox"})
    pod.create("s", *FOREVER, spec=sandbox)
    if SNAPSHOT + ".main" in wrong:
        pod.create("t", *FOREVER, spec=annotated(pod, **{SNAPSHOT: "gone", TYPE: "sandbox"}))
    notes = {SNAPSHOT: "warm", TYPE: "container", NAME: "main"} | wrong
    engines = pod.node.host.engines
    name = notes.get(SNAPSHOT + ".main", "warm")
    assert name in engines._spare
    container = pod.create("c", *FOREVER, spec=annotated(pod, **notes))
    assert container.restoration is None
    assert name not in engines._spare


@pytest.mark.parametrize(
    ("gpu", "notes", "told"),
    [
        (True, {}, ["warm"]),
        (False, {}, []),
        (True, {SNAPSHOT: "other"}, ["warm"]),
        (True, {SNAPSHOT: "warm"}, []),
    ],
)
def test_another_container_gets_the_gpu(
    pod: Pod,
    plays: Any,
    monkeypatch: pytest.MonkeyPatch,
    gpu: bool,
    notes: dict[str, str],
    told: list[str],
) -> None:
    """Before it boots, or is restored itself, what was taken with the sandbox is let go."""
    pod.snapshot("other")
    engines, seen = pod.node.host.engines, []
    monkeypatch.setattr(Engine, "give_way", lambda engine: seen.append(engine.pid))
    sandbox = {SNAPSHOT + ".main": "warm", TYPE: "sandbox"}
    pod.create("s", *FOREVER, spec=annotated(pod, **sandbox))
    names = {spare.engine.pid: name for name, spare in engines._spare.items()}
    spec = annotated(pod, **notes, **{TYPE: "container", NAME: "first"})
    pod.create("c", *FOREVER, spec=spec | (GPU if gpu else {}))
    assert [names[pid] for pid in seen] == told


def test_a_container_that_must_not_boot_cold_leaves_no_engine_either(pod: Pod, plays: Any) -> None:
    pod.create("s", *FOREVER, spec=annotated(pod, **{SNAPSHOT: "gone", TYPE: "sandbox"}))
    engines = pod.node.host.engines
    assert "gone" in engines._spare
    notes = {SNAPSHOT: "gone", TYPE: "container", NAME: "main", ON_FAILURE: "fail"}
    with pytest.raises(NoSuchSnapshot):
        pod.create("c", *FOREVER, spec=annotated(pod, **notes))
    assert not engines._spare


def test_it_gets_ready_while_runc_makes_the_sandbox(pod: Pod, plays: Any) -> None:
    """Its imports take longer than that, and the container comes soon."""
    gate = pod.gate("create")
    spec = annotated(pod, **{SNAPSHOT: "warm", TYPE: "sandbox"})
    creating = Behind(lambda: pod.create("s", *FOREVER, spec=spec))
    pod.node.until(lambda: "warm" in pod.node.host.engines._spare)
    open_gate(gate)
    creating.get()


def test_a_sandbox_that_cannot_be_made_leaves_no_engine(pod: Pod, plays: Any) -> None:
    pod.fail("create", "no")
    spec = annotated(pod, **{SNAPSHOT: "warm", TYPE: "sandbox"})
    with pytest.raises(RuntimeFailed, match="create s: no"):
        pod.create("s", *FOREVER, spec=spec)
    assert not pod.node.host.engines._spare
    pod.node.until(lambda: not pod.node._children())


def test_other_sandboxes_do_not(pod: Pod) -> None:
    pod.create("s", *FOREVER, spec=annotated(pod, **{TYPE: "sandbox"}))
    assert not pod.node.host.engines._spare


def test_what_is_refused_leaves_nothing(pod: Pod) -> None:
    pod.fail("create", "no")
    with pytest.raises(RuntimeFailed, match="create c: no"):
        pod.create("c", *FOREVER)
    assert os.listdir(pod.folder / "state") == []
    assert pod.verbs() == ["create", "delete"]


def test_a_runtime_that_is_not_there(pod: Pod) -> None:
    pod.settings["BinaryName"] = "/no/runc"
    with pytest.raises(RuntimeFailed, match="cannot run /no/runc"):
        pod.create("c", *FOREVER)
    assert os.listdir(pod.folder / "state") == []


@pytest.mark.parametrize("content", [None, "[]", "{"])
def test_a_bundle_without_a_spec(pod: Pod, content: str | None) -> None:
    path = make_bundle(pod.folder / "bundles/c", [], {})
    (path / "config.json").unlink()
    if content is not None:
        (path / "config.json").write_text(content)
    request = pb.CreateTaskRequest(id="c", bundle=str(path), options=pod.options())
    with pytest.raises(InvalidArgument, match=r"config\.json"):
        pod.service.create(request, pod.call())
    assert os.listdir(pod.folder / "state") == []


def test_streams_that_are_not_there(pod: Pod) -> None:
    with pytest.raises(FileNotFoundError):
        pod.create("c", *FOREVER, stdout=str(pod.folder / "missing"))
    assert os.listdir(pod.folder / "state") == []
    assert "create" not in pod.verbs()


@pytest.mark.parametrize(
    ("namespaces", "shared"),
    [([{"type": "pid"}], False), ([{"type": "pid", "path": "/p"}], True), ([], True)],
)
def test_who_shares_pids(pod: Pod, namespaces: list[dict[str, str]], shared: bool) -> None:
    container = pod.create("c", *FOREVER, spec={"linux": {"namespaces": namespaces}})
    assert container.shares_pids == shared
