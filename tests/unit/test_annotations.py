"""What pods may ask for: names, never paths."""

from __future__ import annotations

import pytest

from shim.annotations import (
    CHECKPOINT,
    CONTAINER_NAME,
    CONTAINER_TYPE,
    GPU_MEMORY,
    ON_FAILURE,
    PREFIX,
    PULL,
    READY,
    REGISTER,
    SNAPSHOT,
    TABLE,
    fail_instead_of_cold_start,
    for_everyone,
    gpu_memory,
    is_annotated,
    named_snapshots,
    probe,
    pull_first,
    unknown,
    value,
    wish,
)
from shim.errors import BadAnnotation


@pytest.mark.parametrize(
    ("annotations", "wanted"),
    [
        ({}, None),
        ({SNAPSHOT: "warm"}, ("warm", True)),
        ({SNAPSHOT: "warm", CONTAINER_NAME: "a"}, ("warm", False)),
        ({SNAPSHOT: "warm", CONTAINER_TYPE: "sandbox"}, None),
        ({SNAPSHOT: "warm", CONTAINER_TYPE: "container", CONTAINER_NAME: "a"}, ("warm", False)),
        ({f"{SNAPSHOT}.a": "hot", CONTAINER_NAME: "a"}, ("hot", True)),
        ({f"{SNAPSHOT}.a": "hot", SNAPSHOT: "warm", CONTAINER_NAME: "a"}, ("hot", True)),
        ({f"{SNAPSHOT}.a": "hot", SNAPSHOT: "warm", CONTAINER_NAME: "b"}, ("warm", False)),
        ({f"{SNAPSHOT}.a": "hot", CONTAINER_NAME: "b"}, None),
        ({f"{SNAPSHOT}.a": "hot", CONTAINER_TYPE: "sandbox", CONTAINER_NAME: "a"}, None),
        ({SNAPSHOT: "not/checked/yet"}, ("not/checked/yet", True)),
    ],
)
def test_wishes(annotations: dict[str, str], wanted: tuple[str, bool] | None) -> None:
    found = wish(annotations)
    assert (found and (found.name, found.outright)) == wanted


@pytest.mark.parametrize(
    ("annotations", "names"),
    [
        ({CONTAINER_TYPE: "sandbox", SNAPSHOT: "warm"}, ["warm"]),
        ({CONTAINER_TYPE: "sandbox", f"{SNAPSHOT}.a": "warm"}, ["warm"]),
        ({CONTAINER_TYPE: "sandbox", SNAPSHOT: "warm", f"{SNAPSHOT}.a": "warm"}, ["warm"]),
        ({CONTAINER_TYPE: "sandbox", SNAPSHOT: "b", f"{SNAPSHOT}.a": "a"}, ["b", "a"]),
        ({CONTAINER_TYPE: "sandbox", SNAPSHOT: "../b", f"{SNAPSHOT}.a": "a"}, ["a"]),
        ({CONTAINER_TYPE: "sandbox", SNAPSHOT: "auto", f"{SNAPSHOT}.a": "a"}, ["auto", "a"]),
        ({CONTAINER_TYPE: "sandbox", SNAPSHOT: "r.example/a:1"}, ["r.example/a:1"]),
        ({CONTAINER_TYPE: "sandbox"}, []),
        ({CONTAINER_TYPE: "sandbox", ON_FAILURE: "fail"}, []),
        ({CONTAINER_TYPE: "container", SNAPSHOT: "warm"}, []),
        ({SNAPSHOT: "warm"}, []),
    ],
)
def test_the_sandbox_knows_beforehand(annotations: dict[str, str], names: list[str]) -> None:
    assert named_snapshots(annotations) == names


def test_a_pod_has_only_so_many_snapshots_read_ahead() -> None:
    many = {f"{SNAPSHOT}.{n}": f"s{n}" for n in range(100)}
    assert len(named_snapshots({CONTAINER_TYPE: "sandbox", **many})) == 4


def test_on_failure() -> None:
    assert not fail_instead_of_cold_start({})
    assert not fail_instead_of_cold_start({ON_FAILURE: "cold-start"})
    assert fail_instead_of_cold_start({ON_FAILURE: "fail"})
    for word in ("", "Fail", "panic", "x" * 1000):
        with pytest.raises(BadAnnotation, match=ON_FAILURE) as refused:
            fail_instead_of_cold_start({ON_FAILURE: word})
        assert len(refused.value.message) < 200


def test_pull() -> None:
    assert pull_first({}) == "background"
    for word in ("wait", "background", "never"):
        assert pull_first({PULL: word}) == word
    with pytest.raises(BadAnnotation, match=PULL) as refused:
        pull_first({PULL: "Always"})
    assert "background, wait or never" in refused.value.hint


@pytest.mark.parametrize(
    ("text", "kind", "target"),
    [
        ("contract", "contract", ""),
        ("file:/run/ready", "file", "/run/ready"),
        ("tcp:8000", "tcp", "8000"),
        ("http:8000/health?full=1", "http", "8000/health?full=1"),
        ("http:80", "http", "80"),
        ("exec:test -e /a: && true", "exec", "test -e /a: && true"),
    ],
)
def test_probes(text: str, kind: str, target: str) -> None:
    found = probe({READY: text})
    assert found is not None
    assert (found.kind, found.target) == (kind, target)
    assert probe({}) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "file", "file:", "file:relative", "file:/a\0b", "tcp:", "tcp:0", "tcp:65536"),
        *(
            "contract:",
            "tcp:1/x",
            "tcp:-1",
            "tcp:²",
            "http:/x",
            "http:x/y",
            "http:80/a b",
            "http:80/\n",
            "http:80/ü",
        ),
        *("exec:", "exec:  ", "exec:\0", "shell:true", "FILE:/a", "http://host/x", "x" * 1000),
    ],
)
def test_what_is_no_probe(text: str) -> None:
    with pytest.raises(BadAnnotation, match=READY) as refused:
        probe({READY: text})
    assert "http:PORT/PATH" in refused.value.hint
    assert len(refused.value.message) < 200


def test_a_container_may_be_named() -> None:
    notes = {READY: "tcp:1", f"{READY}.a": "tcp:2", CONTAINER_NAME: "a"}
    assert value(notes, READY) == "tcp:2"
    assert value({**notes, CONTAINER_NAME: "b"}, READY) == "tcp:1"
    assert value({f"{READY}.a": "tcp:2"}, READY) is None
    assert fail_instead_of_cold_start({f"{ON_FAILURE}.a": "fail", CONTAINER_NAME: "a"})


@pytest.mark.parametrize(
    ("annotations", "asked"),
    [
        ({}, False),
        ({"other.dev/snapshot": "a", CONTAINER_NAME: "a"}, False),
        ({READY: "tcp:1"}, True),
        ({f"{READY}.a": "tcp:1", CONTAINER_NAME: "a"}, True),
        ({f"{READY}.a": "tcp:1", CONTAINER_NAME: "b"}, False),
        ({READY: "tcp:1", CONTAINER_TYPE: "sandbox"}, False),
    ],
)
def test_who_asks_for_something(annotations: dict[str, str], asked: bool) -> None:
    assert is_annotated(annotations) == asked


@pytest.mark.parametrize(
    ("annotations", "keys"),
    [
        ({CHECKPOINT: "warm", f"{SNAPSHOT}.b": "x"}, [CHECKPOINT]),
        ({CHECKPOINT: "warm", REGISTER: "http:1/", f"{SNAPSHOT}.b": "x"}, [CHECKPOINT, REGISTER]),
        ({CHECKPOINT: "warm", f"{CHECKPOINT}.a": "own", f"{SNAPSHOT}.b": "x"}, []),
        ({CHECKPOINT: "warm", f"{SNAPSHOT}.a": "x"}, []),
        ({CHECKPOINT: "warm", SNAPSHOT: "x"}, []),
        ({f"{CHECKPOINT}.b": "warm", f"{SNAPSHOT}.b": "x"}, []),
    ],
)
def test_what_is_for_all_containers(annotations: dict[str, str], keys: list[str]) -> None:
    assert for_everyone({**annotations, CONTAINER_NAME: "a"}) == keys
    assert for_everyone(annotations) == [], "without CRI there is but one"


def test_slips_of_the_pen() -> None:
    notes = {f"{PREFIX}canery": "", READY: "", f"{READY}.a": "", f"{SNAPSHOT}.b": "", "a/b": ""}
    assert unknown(notes) == [f"{PREFIX}canery"]


def test_the_table() -> None:
    """The README is made from it."""
    keys = [row.key for row in TABLE]
    assert keys[:5] == [SNAPSHOT, f"{SNAPSHOT}.CONTAINER", ON_FAILURE, PULL, READY]
    assert len(set(keys)) == len(keys)
    for row in TABLE:
        assert row.key.startswith(PREFIX)
        assert row.sentence.endswith(".")
    defaults = {row.key: row.default for row in TABLE}
    assert not fail_instead_of_cold_start({ON_FAILURE: defaults[ON_FAILURE]})
    assert pull_first({PULL: defaults[PULL]}) == pull_first({})
    assert gpu_memory({}, "library") == defaults[GPU_MEMORY]
