"""Where a container comes from: what the annotations, the stores and the operator say together."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from fakes.pod import Pod

from shim.config import Config
from shim.errors import BadAnnotation, Denied, NoSuchSnapshot
from shim.task.source import Origins, origins_of

SNAPSHOT = "thaw.dev/snapshot"
CHECKPOINT = "thaw.dev/checkpoint"
ARTIFACT = "r.example/team/worker:1"
PINNED = f"warm@sha256:{'0a' * 32}"
ANYONE = {"policy__auto": "*", "policy__checkpoint": "*"}
ALLOWED = {"registry.allow": "r.example/team other.example"}


def asked(pod: Pod, notes: dict[str, str], **settings: Any) -> Origins:
    values = {**pod.settings, **{name.replace("__", "."): v for name, v in settings.items()}}
    return origins_of("c", "", notes, Config(values))


def test_a_cold_pod(pod: Pod) -> None:
    found = asked(pod, {})
    assert found.source is None
    assert is_idle(found)


def is_idle(found: Origins) -> bool:
    """Whether nothing follows a cold boot."""
    return (found.making, found.pull, found.waits) == (None, "", False)


def made(found: Origins) -> tuple[str, str, bool]:
    """Name, probe and end of the snapshot that will be made."""
    assert found.making is not None
    ready = found.making.ready
    return found.making.name, f"{ready.kind}:{ready.target}", found.making.exits


def test_a_name(pod: Pod) -> None:
    made = pod.snapshot("warm")
    source = asked(pod, {SNAPSHOT: "warm"}).source
    assert source is not None
    assert (source.path, source.name, source.must) == (str(made), "warm", False)


def test_the_first_store_that_has_it(pod: Pod) -> None:
    made = pod.snapshot("warm")
    stores = f"{pod.folder}/elsewhere:{pod.folder}/snapshots"
    source = asked(pod, {SNAPSHOT: "warm"}, snapshots=stores).source
    assert source is not None
    assert source.path == str(made)


def test_a_digest(pod: Pod) -> None:
    made = pod.snapshot("warm")
    assert asked(pod, {SNAPSHOT: PINNED}).source is None
    digests = pod.folder / "snapshots/digests"
    digests.mkdir()
    (digests / ("0a" * 32)).write_text(f"{made.name}\n")
    source = asked(pod, {SNAPSHOT: PINNED}).source
    assert source is not None
    assert (source.path, source.name) == (str(made), PINNED)


def test_auto_is_made_once_it_is_warm(pod: Pod) -> None:
    found = asked(pod, {SNAPSHOT: "auto"}, policy__auto="*")
    assert found.source is not None
    assert (found.source.path, found.source.name) == ("", "auto")
    assert made(found) == ("auto", "contract:", False)
    more = {SNAPSHOT: "auto", "thaw.dev/ready": "tcp:8000", "thaw.dev/after-checkpoint": "exit"}
    assert made(asked(pod, more, policy__auto="*")) == ("auto", "tcp:8000", True)


@pytest.mark.parametrize("name", ["warm", "auto"])
def test_a_snapshot_that_is_to_be_made(pod: Pod, name: str) -> None:
    found = asked(
        pod,
        {CHECKPOINT: name, "thaw.dev/ready": "exec:true"},
        policy__auto="default *",
        policy__checkpoint="x *",
    )
    assert found.source is None
    assert made(found) == (name, "exec:true", False)


def test_the_container_that_is_named_makes_it(pod: Pod) -> None:
    notes = {f"{CHECKPOINT}.app": "warm", "io.kubernetes.cri.container-name": "app"}
    assert made(asked(pod, notes, **ANYONE))[0] == "warm"
    notes["io.kubernetes.cri.container-name"] = "proxy"
    assert is_idle(asked(pod, notes, **ANYONE))


def test_a_sandbox_makes_none(pod: Pod) -> None:
    notes = {CHECKPOINT: "warm", "io.kubernetes.cri.container-type": "sandbox"}
    assert is_idle(asked(pod, notes, **ANYONE))


def test_one_is_restored_and_another_made_if_it_boots_cold(pod: Pod) -> None:
    path = pod.snapshot("old")
    found = asked(pod, {SNAPSHOT: "old", CHECKPOINT: "new"}, **ANYONE)
    assert found.source is not None
    assert (found.source.path, made(found)[0]) == (str(path), "new")
    found = asked(pod, {SNAPSHOT: "auto", CHECKPOINT: "new"}, **ANYONE)
    assert found.source is not None
    assert (found.source.name, made(found)[0]) == ("auto", "new")


def test_one_that_is_missing_is_made(pod: Pod, logged: Callable[[], str]) -> None:
    found = asked(pod, {SNAPSHOT: "warm", CHECKPOINT: "warm"}, **ANYONE)
    assert (found.source, made(found)[0]) == (None, "warm")
    assert "no snapshot named warm" in logged()


def test_one_is_pulled_and_another_made(pod: Pod) -> None:
    notes = {SNAPSHOT: ARTIFACT, CHECKPOINT: "warm"}
    found = asked(pod, notes, **ANYONE, registry__allow="r.example")
    assert (found.pull, made(found)[0]) == (ARTIFACT, "warm")


@pytest.mark.parametrize(
    ("notes", "waits"),
    [
        ({SNAPSHOT: "missing"}, True),
        ({SNAPSHOT: "missing", "thaw.dev/ready": "contract"}, True),
        ({SNAPSHOT: "missing", "thaw.dev/ready": "tcp:8000"}, False),
        ({CHECKPOINT: "warm"}, True),
        ({"thaw.dev/ready": "contract"}, False),
        ({"thaw.dev/canary": "http:8000/"}, False),
    ],
)
def test_a_worker_of_the_contract_waits(pod: Pod, notes: dict[str, str], waits: bool) -> None:
    """Without a word of snapshots that are restored or made it is left to `thaw checkpoint`."""
    for allowed in ("*", ""):
        assert asked(pod, notes, policy__checkpoint=allowed).waits == waits


def test_one_that_may_not_be_made(pod: Pod, logged: Callable[[], str]) -> None:
    """It is no reason not to restore what is there, nor not to boot."""
    path = pod.snapshot("warm")
    strict = {CHECKPOINT: "warm", "thaw.dev/on-failure": "fail"}
    found = asked(pod, {**strict, SNAPSHOT: "warm"})
    assert found.source is not None
    assert (found.source.path, found.making) == (str(path), None)
    assert asked(pod, strict).making is None
    assert logged().count("no snapshot will be made") == 2
    assert "policy.checkpoint" in logged()
    entry = json.loads((pod.folder / "audit.log").read_text().splitlines()[-1])
    assert (entry["event"], entry["name"], entry["reason"]) == ("refuse", "warm", "Denied")
    assert entry["outcome"] == "not made"


@pytest.mark.parametrize(
    "bad",
    [
        {CHECKPOINT: "a/b:c"},
        {CHECKPOINT: "warm", "thaw.dev/after-checkpoint": "stop"},
        {CHECKPOINT: "warm", "thaw.dev/ready": "soon"},
    ],
)
def test_bad_annotations(pod: Pod, bad: dict[str, str], logged: Callable[[], str]) -> None:
    found = asked(pod, bad, **ANYONE)
    assert found.source is None
    assert is_idle(found)
    assert "BadAnnotation" in logged()
    with pytest.raises(BadAnnotation, match=r"thaw\.dev/"):
        asked(pod, {**bad, "thaw.dev/on-failure": "fail"}, **ANYONE)


@pytest.mark.parametrize(
    ("allowed", "good"), [("", False), ("other", False), ("other team", True), ("*", True)]
)
def test_who_may_have_snapshots_made(pod: Pod, allowed: str, good: bool) -> None:
    """Each is as large as a worker, so somebody has to say so."""
    notes = {
        SNAPSHOT: "auto",
        "thaw.dev/ready": "tcp:8000",
        "thaw.dev/on-failure": "fail",
        "io.kubernetes.cri.sandbox-namespace": "team",
    }
    if good:
        assert made(asked(pod, notes, policy__auto=allowed))[0] == "auto"
        return
    with pytest.raises(Denied, match="'team'"):
        asked(pod, notes, policy__auto=allowed)


@pytest.mark.parametrize("name", ["warm", "auto"])
@pytest.mark.parametrize("key", ["policy__auto", "policy__checkpoint"])
def test_a_name_of_ones_own_is_another_matter(pod: Pod, name: str, key: str) -> None:
    """A derived name nobody can choose; any other could be taken from whom it is meant for."""
    found = asked(pod, {CHECKPOINT: name}, **{key: "*"})
    assert (found.making is not None) == ((key == "policy__auto") == (name == "auto"))


def test_auto_is_restored_whoever_may_choose_names(pod: Pod) -> None:
    notes = {SNAPSHOT: "auto", CHECKPOINT: "warm"}
    found = asked(pod, notes, policy__auto="*")
    assert found.source is not None
    assert (found.source.name, found.making) == ("auto", None)
    found = asked(pod, notes, policy__checkpoint="*")
    assert (found.source, made(found)[0]) == (None, "warm")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({f"{SNAPSHOT}.app": "old"}, True),
        ({f"{SNAPSHOT}.proxy": "old"}, False),
        ({f"{SNAPSHOT}.app": "old", f"{CHECKPOINT}.proxy": "own"}, False),
        ({SNAPSHOT: "old"}, False),
    ],
)
def test_one_container_is_meant_and_all_are_addressed(
    pod: Pod, more: dict[str, str], said: bool, logged: Callable[[], str]
) -> None:
    notes = {CHECKPOINT: "warm", "io.kubernetes.cri.container-name": "proxy", **more}
    asked(pod, notes, **ANYONE)
    assert ("is for all containers" in logged()) == said
    assert (f"{CHECKPOINT}.CONTAINER" in logged()) == said


def test_a_bad_probe_is_said_even_if_it_is_not_needed(pod: Pod) -> None:
    pod.snapshot("warm")
    strict = {"thaw.dev/on-failure": "fail", "thaw.dev/ready": "soon", SNAPSHOT: "warm"}
    with pytest.raises(BadAnnotation, match="ready"):
        asked(pod, strict)


def test_an_artifact_that_is_here(pod: Pod) -> None:
    made = pod.snapshot(ARTIFACT)
    source = asked(pod, {SNAPSHOT: ARTIFACT}).source
    assert source is not None
    assert source.path == str(made), "nobody has to be asked whether it may be pulled"


@pytest.mark.parametrize(
    ("when", "source", "pull"),
    [("wait", True, ""), ("background", False, ARTIFACT), ("", False, ARTIFACT)],
)
def test_an_artifact_that_is_not(pod: Pod, when: str, source: bool, pull: str) -> None:
    notes = {SNAPSHOT: ARTIFACT, **({"thaw.dev/pull": when} if when else {})}
    found = asked(pod, notes, registry__allow=ALLOWED["registry.allow"])
    assert (found.source is not None, found.pull) == (source, pull)
    if found.source is not None:
        assert (found.source.path, found.source.name) == ("", ARTIFACT)


@pytest.mark.parametrize(
    ("notes", "settings", "error"),
    [
        ({}, {}, Denied),
        ({}, {"registry__allow": "r.example/team2"}, Denied),
        ({"thaw.dev/pull": "wait"}, {}, Denied),
        ({"thaw.dev/pull": "never"}, {"registry__allow": "r.example"}, NoSuchSnapshot),
        ({"thaw.dev/pull": "background"}, {"registry__allow": "r.example"}, NoSuchSnapshot),
        ({"thaw.dev/pull": "now"}, {"registry__allow": "r.example"}, BadAnnotation),
    ],
)
def test_one_that_must_not_boot_cold(
    pod: Pod, notes: dict[str, str], settings: dict[str, str], error: type[Exception]
) -> None:
    strict = {SNAPSHOT: ARTIFACT, "thaw.dev/on-failure": "fail", **notes}
    with pytest.raises(error):
        asked(pod, strict, **settings)


def test_a_refusal_is_in_both_logs(pod: Pod, logged: Callable[[], str]) -> None:
    notes = {
        SNAPSHOT: ARTIFACT,
        "io.kubernetes.cri.sandbox-name": "worker-1",
        "io.kubernetes.cri.sandbox-namespace": "team",
    }
    asked(pod, notes)
    (line,) = (pod.folder / "audit.log").read_text().splitlines()
    entry = json.loads(line)
    assert entry["event"] == "refuse"
    assert (entry["name"], entry["pod"], entry["namespace"]) == (ARTIFACT, "worker-1", "team")
    assert (entry["reason"], entry["outcome"]) == ("Denied", "cold boot")
    assert "booting cold" in logged()
    assert "registry.allow" in logged()
