"""Where a container comes from: what the annotations, the stores and the operator say together."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from fakes.pod import Pod

from shim.config import Config
from shim.errors import BadAnnotation, Denied, NoSuchSnapshot
from shim.task.source import MAKE, PULL, Origins, origins_of

SNAPSHOT = "thaw.dev/snapshot"
ARTIFACT = "r.example/team/worker:1"
PINNED = f"warm@sha256:{'0a' * 32}"
ALLOWED = {"registry.allow": "r.example/team other.example"}


def asked(pod: Pod, notes: dict[str, str], **settings: Any) -> Origins:
    values = {**pod.settings, **{name.replace("__", "."): v for name, v in settings.items()}}
    return origins_of("c", "", notes, Config(values))


def test_a_cold_pod(pod: Pod) -> None:
    found = asked(pod, {})
    assert (found.source, found.aside) == (None, "")


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


def test_auto_wants_to_know_when_it_is_warm(pod: Pod, logged: Callable[[], str]) -> None:
    found = asked(pod, {SNAPSHOT: "auto"})
    assert (found.source, found.aside) == (None, "")
    assert "auto without thaw.dev/ready" in logged()
    warm = {SNAPSHOT: "auto", "thaw.dev/ready": "tcp:8000"}
    found = asked(pod, warm, policy__auto="*")
    assert found.source is not None
    assert (found.source.path, found.source.name, found.aside) == ("", "auto", MAKE)
    assert found.ready is not None
    assert (found.ready.kind, found.ready.target) == ("tcp", "8000")


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
        assert asked(pod, notes, policy__auto=allowed).aside == MAKE
        return
    with pytest.raises(Denied, match="'team'"):
        asked(pod, notes, policy__auto=allowed)


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
    ("when", "source", "aside"),
    [("wait", True, ""), ("background", False, PULL), ("", False, PULL)],
)
def test_an_artifact_that_is_not(pod: Pod, when: str, source: bool, aside: str) -> None:
    notes = {SNAPSHOT: ARTIFACT, **({"thaw.dev/pull": when} if when else {})}
    found = asked(pod, notes, registry__allow=ALLOWED["registry.allow"])
    assert (found.source is not None, found.aside) == (source, aside)
    if found.source is not None:
        assert (found.source.path, found.source.name) == ("", ARTIFACT)
    else:
        assert found.name == ARTIFACT


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
