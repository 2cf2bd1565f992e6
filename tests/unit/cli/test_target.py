"""The container that is meant: a bundle, or one that runc knows."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.pod import make_bundle

from shim.cli import target
from shim.cli.target import Target
from shim.config import Config
from shim.errors import InvalidArgument, NotFound

SPEC: dict[str, Any] = {
    "annotations": {
        "io.kubernetes.cri.container-name": "worker",
        "io.kubernetes.cri.sandbox-namespace": "team",
        "thaw.dev/snapshot.worker": "one",
    }
}


def named(config: Config, *words: str) -> Target | None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-q", "--quiet", action="store_true")
    target.arguments(parser, required=False)
    return target.named(parser.parse_args([*words, "--address", "/none"]), config)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """With a runc that knows container `c-1` only."""
    runc = tmp_path / "bin" / "runc"
    runc.parent.mkdir()
    state = json.dumps({"bundle": str(tmp_path / "k8s.io" / "c-1")})
    runc.write_text(f"#!/bin/sh\ncase $* in *'state c-1') echo '{state}';; *) exit 1;; esac\n")
    runc.chmod(0o755)
    (tmp_path / "state" / "k8s.io" / "c-1").mkdir(parents=True)
    return Config({"BinaryName": str(runc), "state": str(tmp_path / "state")})


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "k8s.io" / "c-1", ["serve"], SPEC)


def test_none(config: Config) -> None:
    assert named(config) is None


def test_a_bundle(config: Config, bundle: Path, tmp_path: Path) -> None:
    found = named(config, "--bundle", str(bundle))
    assert found is not None
    assert (found.work.id, found.work.namespace) == ("c-1", "k8s.io")
    assert found.work.folder == tmp_path / "state" / "k8s.io" / "c-1"
    assert (found.live.container, found.live.args, found.live.namespace) == (
        "worker",
        ["serve"],
        "team",
    )
    assert found.asks is not None
    assert (found.asks.name, found.asks.outright) == ("one", True)
    assert found.work.rootfs == ()
    found = named(config, "--bundle", str(bundle), "-n", "other")
    assert found is not None
    assert found.work.namespace == "other"


def test_a_container(config: Config, bundle: Path) -> None:
    found = named(config, "--container", "c-")
    assert found is not None
    assert found.work.bundle.path == str(bundle)
    assert found.live.container == "worker"


def test_the_configuration_it_was_made_with(config: Config, bundle: Path) -> None:
    kept = {**config.as_dict(), "restore.engine": "criu"}
    (bundle / "options.json").write_text(json.dumps(kept))
    found = named(config, "--container", "c-1")
    assert found is not None
    assert found.work.config.text("restore.engine") == "criu"


def test_none_of_that_name(config: Config, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no container x"):
        named(config, "--container", "x")
    (tmp_path / "state" / "k8s.io" / "c-2").mkdir()
    with pytest.raises(NotFound, match="no bundle"):
        named(config, "--container", "c-2")
    with pytest.raises(InvalidArgument, match="could be"):
        named(config, "--container", "c-")
    with pytest.raises(InvalidArgument, match="cannot read"):
        named(config, "--bundle", str(tmp_path))


@pytest.fixture
def mounted(bundle: Path, tmp_path: Path) -> Iterator[Path]:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (bundle / "rootfs").mkdir(exist_ok=True)
    options = ",".join(f"{name}dir={tmp_path}/{name}" for name in ("lower", "upper", "work"))
    command = ["mount", "-t", "overlay", "-o", options, "overlay", str(bundle / "rootfs")]
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"no overlay here: {done.stderr!r}")
    yield bundle
    subprocess.run(["umount", str(bundle / "rootfs")], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_what_is_mounted(config: Config, mounted: Path, tmp_path: Path) -> None:
    found = named(config, "--bundle", str(mounted))
    assert found is not None
    assert found.work.upper == tmp_path / "upper"
    assert found.work.scratch == tmp_path / "work"
