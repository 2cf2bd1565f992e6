"""What tests/gpu asks of a worker, and when it is the one that it was."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from bed.pod import Mount
from gpu.lane import mounts_for
from gpu.machine import Machine
from gpu.subject import Wrong, by_driver, compare, everything, jaxed, pytorch, transformers

from shim.annotations import TABLE

ANSWER: dict[str, Any] = {"memory": [1, 2], "graph": [3], "answers": 1, "pid": 1}
SUBJECT = pytorch(8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"memory": [1, 3]}, "another memory than"),
        ({"memory": [], "graph": [4]}, "another memory and another graph"),
        ({"answers": 1}, "started anew"),
    ],
)
def test_a_worker_that_is_not_what_it_was(change: dict[str, Any], words: str) -> None:
    assert compare("it", SUBJECT, ANSWER, {**ANSWER, "answers": 2})
    with pytest.raises(Wrong, match=words):
        compare("it", SUBJECT, ANSWER, {**ANSWER, "answers": 2, **change})


def test_names_are_those_of_snapshots() -> None:
    assert pytorch(0.5).name == "pytorch-0.5g"
    assert transformers("0.6B", 16).name == "transformers-0.6b"
    assert transformers("8B", 16, cache=20).name == "transformers-8b-kv20"
    assert everything(4, 20, "cuda", expandable=True).name == "expandable-4g"


def test_a_cache_is_looked_at_when_there_is_time() -> None:
    subject = transformers("8B", 16, cache=20)
    assert subject.words[-1] == "20"
    assert "cache" not in subject.first
    assert "cache=1" in subject.whole
    assert "cache" in subject.same
    assert "cache" not in transformers("8B", 16).whole


def test_one_that_is_left_to_the_driver() -> None:
    subject = by_driver(SUBJECT)
    assert subject.name == "pytorch-8g-driver"
    assert set(subject.annotations) <= {row.key for row in TABLE}
    assert set(subject.annotations.values()) == {"driver"}
    assert not subject.acts


def test_allocators() -> None:
    chosen = everything(4, 0, "cuda", expandable=True).environment
    assert set(chosen.values()) == {"expandable_segments:True"}
    assert not everything(4, 0, "cuda").environment
    assert float(jaxed(4, "cuda").environment["XLA_PYTHON_CLIENT_MEM_FRACTION"]) * 79 > 4
    assert jaxed(70, "cuda").environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.90"
    assert jaxed(1, "cpu").environment["JAX_PLATFORMS"] == "cpu"


def test_the_toolkit_is_where_xla_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its real name, and nowhere else."""
    toolkit = tmp_path / "cuda-13.0"
    (toolkit / "bin").mkdir(parents=True)
    (toolkit / "bin" / "ptxas").touch()
    (tmp_path / "cuda").symlink_to(toolkit)
    monkeypatch.setattr("shutil.which", lambda _: str(tmp_path / "cuda" / "bin" / "ptxas"))
    subject = jaxed(1, "cuda")
    machine = SimpleNamespace(mounts=[Mount(toolkit, str(toolkit)), Mount("/usr", "/usr")])
    mounts = mounts_for(cast("Machine", machine), subject)
    assert [mount.container for mount in mounts if mount.host == toolkit] == ["/opt/cuda"]
    assert Mount("/usr", "/usr") in mounts
    assert all(mount.readonly for mount in mounts)
    monkeypatch.setattr("shutil.which", lambda _: str(tmp_path / "none" / "bin" / "ptxas"))
    assert not jaxed(1, "cuda").elsewhere
