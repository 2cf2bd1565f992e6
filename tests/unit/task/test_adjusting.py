"""What a restore is given for a spec, and what the cold boot after it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shim import spawn
from shim.bundle import Bundle
from shim.config import Config
from shim.runc import Runc
from shim.task.adjusting import adjust, give_back

LEGACY = {"path": "/usr/bin/nvidia-container-runtime-hook"}
SPEC: dict[str, Any] = {"process": {"env": ["NVIDIA_VISIBLE_DEVICES=0"]}}
# As NVIDIA's does it: whatever is asked, if there is the word, in the folder that it stands in.
RUNTIME = """#!/bin/sh
echo "$@" >> calls
case " $* " in *" create "*) sed -i 's/NVIDIA_VISIBLE_DEVICES=0/void/' config.json;; esac
echo "container does not exist" >&2
exit 1
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    (tmp_path / "bundle").mkdir()
    bundle = Bundle(str(tmp_path / "bundle"))
    bundle.save(SPEC)
    return bundle


def runtime(folder: Path, text: str, name: str = "nvidia-container-runtime") -> Runc:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    config = Config({"BinaryName": str(path), "Root": str(folder / "runc")})
    return Runc(config, "ns", "c", str(folder / "log"), spawn.run)


def test_nvidias_runtime(bundle: Bundle, tmp_path: Path) -> None:
    adjust(runtime(tmp_path, RUNTIME), bundle)
    assert bundle.spec() == {"process": {"env": ["void"]}}
    calls = Path(bundle.path, "calls").read_text()
    assert calls == f"--root {tmp_path}/runc/ns state create\n"
    give_back(bundle)
    assert bundle.spec() == SPEC
    assert sorted(os.listdir(bundle.path)) == ["calls", "config.json"]


def test_another_runtime(bundle: Bundle, tmp_path: Path) -> None:
    adjust(runtime(tmp_path, RUNTIME, "runc"), bundle)
    assert bundle.spec() == SPEC
    assert os.listdir(bundle.path) == ["config.json"]
    give_back(bundle)
    assert bundle.spec() == SPEC


@pytest.mark.parametrize("name", ["runc", "nvidia-container-runtime"])
def test_hooks_that_mount(bundle: Bundle, tmp_path: Path, name: str) -> None:
    spec = {**SPEC, "hooks": {"prestart": [LEGACY], "poststop": [LEGACY]}}
    bundle.save(spec)
    adjust(runtime(tmp_path, RUNTIME, name), bundle)
    assert bundle.spec()["hooks"] == {"prestart": [], "poststop": [LEGACY]}
    give_back(bundle)
    assert bundle.spec() == spec


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("#!/bin/sh\necho no such device >&2; exit 1\n", "state create: no such device"),
        ("#!/bin/sh\necho > config.json; echo does not exist\n", "cannot read"),
    ],
)
def test_one_that_fails(
    bundle: Bundle, tmp_path: Path, logged: Callable[[], str], text: str, said: str
) -> None:
    """The snapshot is refused then, for what is missing; the cold boot has what it needs."""
    adjust(runtime(tmp_path, text), bundle)
    assert "not adjusted" in logged()
    assert said in logged()
    give_back(bundle)
    assert bundle.spec() == SPEC
