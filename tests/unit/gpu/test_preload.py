"""The GPU memory library in a spec, and its versions on the node."""

from __future__ import annotations

import copy
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shim.config import Config
from shim.errors import FailedPrecondition, Unfit
from shim.gpu import preload
from shim.gpu.preload import (
    PLACE,
    digest_of,
    give,
    is_possible,
    is_wanted,
    keep,
    put,
    take,
    without,
)

DIGEST, OTHER = hashlib.sha256(b"one").hexdigest(), hashlib.sha256(b"two").hexdigest()
FILE, ANOTHER = (f"/libraries/libthaw-gpu-{digest}.so" for digest in (DIGEST, OTHER))
DEV = {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}
MOUNT = {
    "destination": PLACE,
    "type": "bind",
    "source": FILE,
    "options": ["bind", "ro", "nosuid", "nodev"],
}


def spec_of(*env: str, mounts: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"process": {"cwd": "/", "env": list(env)}, "mounts": mounts or [DEV]}


def test_it_is_given() -> None:
    spec = spec_of("A=b")
    give(spec, FILE)
    assert spec == {
        "process": {"cwd": "/", "env": ["A=b", f"LD_PRELOAD={PLACE}"]},
        "mounts": [DEV, MOUNT],
    }
    assert digest_of(spec) == DIGEST


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["LD_PRELOAD=/lib/a.so"], f"{PLACE}:/lib/a.so"),
        (["LD_PRELOAD=/lib/a.so:b.so c.so"], f"{PLACE}:/lib/a.so:b.so c.so"),
        (["LD_PRELOAD="], PLACE),
        (["LD_PRELOAD"], PLACE),
        # As runc has it: of several the last one counts.
        (["LD_PRELOAD=/lib/a.so", "LD_PRELOAD=/lib/b.so"], f"{PLACE}:/lib/b.so"),
        (["LD_PRELOAD=/lib/a.so", "LD_PRELOAD="], PLACE),
    ],
)
def test_it_comes_before_what_the_pod_has(before: list[str], after: str) -> None:
    spec = spec_of("A=b", *before)
    give(spec, FILE)
    assert spec["process"]["env"] == ["A=b", f"LD_PRELOAD={after}"]


@pytest.mark.parametrize("spec", [{}, {"process": None, "mounts": None}, spec_of("LD_PRELOAD=x")])
def test_done_twice(spec: dict[str, Any]) -> None:
    spec = copy.deepcopy(spec)
    give(spec, FILE)
    once = copy.deepcopy(spec)
    give(spec, FILE)
    assert spec == once


def test_another_version_takes_its_place() -> None:
    spec = spec_of("LD_PRELOAD=x")
    give(spec, FILE)
    give(spec, ANOTHER)
    assert digest_of(spec) == OTHER
    assert spec["process"]["env"] == [f"LD_PRELOAD={PLACE}:x"]
    assert len(spec["mounts"]) == 2


@pytest.mark.parametrize("env", [["A=b"], ["A=b", "LD_PRELOAD=x:y"], []])
def test_it_is_taken_again(env: list[str]) -> None:
    spec = spec_of(*env)
    before = copy.deepcopy(spec)
    put(spec, FILE)
    assert without(spec) == before
    assert digest_of(spec) == DIGEST, "a copy was changed"
    put(spec, "")
    assert spec == before
    take(spec)
    assert spec == before


def test_what_is_the_pods_stays() -> None:
    """A pod may preload what it likes; without a mount of ours none of it is ours."""
    spec = spec_of(f"LD_PRELOAD={PLACE}", mounts=[DEV, {"destination": PLACE, "source": "/a.so"}])
    before = copy.deepcopy(spec)
    take(spec)
    assert spec == before == without(spec)
    assert digest_of(spec) == ""


def test_lists_that_others_hold_are_left_alone() -> None:
    env, mounts = ["A=b"], [DEV]
    give({"process": {"env": env}, "mounts": mounts}, FILE)
    assert (env, mounts) == (["A=b"], [DEV])


@pytest.mark.parametrize(
    ("mounts", "possible"),
    [
        ([DEV], True),
        ([{**DEV, "destination": "/dev/"}], True),
        ([DEV, MOUNT], True),
        ([DEV, {**DEV, "type": "bind", "source": "/dev"}], False),  # the machine's
        ([DEV, {"destination": PLACE, "type": "bind", "source": "/their.so"}], False),
        ([DEV, {"destination": PLACE, "type": "bind", "source": "/libthaw-gpu-1.so"}], False),
        ([], False),
    ],
)
def test_where_there_is_a_place(mounts: list[dict[str, Any]], possible: bool) -> None:
    assert is_possible({"mounts": mounts}) == possible
    assert not is_possible({})


@pytest.mark.parametrize(
    ("annotation", "configured", "wanted", "for_several"),
    [
        (None, "library", True, False),
        ("library", "library", True, True),
        ("driver", "library", False, False),
        # Refused elsewhere; who wrote it did not want what is usual.
        ("none", "library", False, False),
        (None, "driver", False, False),
        ("library", "driver", False, False),
    ],
)
def test_who_wants_it(
    annotation: str | None, configured: str, wanted: bool, for_several: bool
) -> None:
    notes = {} if annotation is None else {"thaw.dev/gpu-memory": annotation}
    config = Config({"gpu.memory": configured})
    assert is_wanted(notes, config) == wanted
    assert is_wanted(notes, config, several=True) == for_several


def test_for_one_container() -> None:
    name = {"io.kubernetes.cri.container-name": "main"}
    for container, wanted in (("main", False), ("other", True)):
        notes = {**name, f"thaw.dev/gpu-memory.{container}": "driver"}
        assert is_wanted(notes, Config()) == wanted


# On the node


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "libthaw-gpu.so"
    path.write_bytes(b"one")
    return path


def test_a_version_is_kept(tmp_path: Path, library: Path) -> None:
    folder = tmp_path / "var" / "libraries"
    before = os.umask(0o077)
    try:
        path = keep(str(folder), str(library))
    finally:
        os.umask(before)
    assert path == preload.path_of(str(folder), DIGEST) == preload.find(str(folder), DIGEST)
    assert Path(path).read_bytes() == b"one"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o444, "any user of a container can read it"
    assert preload.is_version(os.path.basename(path))
    inode = os.stat(path).st_ino
    assert keep(str(folder), str(library)) == path
    assert os.stat(path).st_ino == inode, "it may be mapped: it is never replaced"


def test_versions_side_by_side(tmp_path: Path, library: Path) -> None:
    """An upgrade brings another one, and takes none away."""
    first = keep(str(tmp_path), str(library))
    library.unlink()
    library.write_bytes(b"two")
    second = keep(str(tmp_path), str(library))
    assert first != second
    assert preload.find(str(tmp_path), DIGEST) == first
    assert preload.find(str(tmp_path), OTHER) == second
    assert sorted(os.listdir(tmp_path)) == sorted(
        [library.name, os.path.basename(first), os.path.basename(second)]
    )


def test_one_that_is_not_there(tmp_path: Path, library: Path) -> None:
    keep(str(tmp_path), str(library))
    with pytest.raises(Unfit, match=f"{OTHER} mapped, which is not here: .*so: No such file"):
        preload.find(str(tmp_path), OTHER)


def test_one_that_is_another(tmp_path: Path, library: Path) -> None:
    path = Path(preload.path_of(str(tmp_path), DIGEST))
    path.write_bytes(b"oen")
    with pytest.raises(Unfit, match=f"{path} is not the GPU memory library {DIGEST}"):
        preload.find(str(tmp_path), DIGEST)
    with pytest.raises(FailedPrecondition, match="not what its name says"):
        keep(str(tmp_path), str(library))
    assert path.read_bytes() == b"oen"


def test_a_snapshot_carries_it_along(tmp_path: Path, library: Path) -> None:
    """To a node that has built its own, or an older Thaw's."""
    images, here, there = (tmp_path / name for name in ("images", "here", "there"))
    images.mkdir()
    keep(str(here), str(library))
    preload.carry(str(here), DIGEST, str(images))
    carried = images / preload.CARRIED
    assert stat.S_IMODE(carried.stat().st_mode) == 0o600
    assert preload.find(str(there), DIGEST, str(carried)) == str(carried)
    assert not there.exists()
    path = preload.bring(str(there), DIGEST, str(images))
    assert path == preload.path_of(str(there), DIGEST)
    assert Path(path).read_bytes() == b"one"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o444
    carried.write_bytes(b"two")
    assert preload.bring(str(there), DIGEST, str(images)) == path, "it is there already"


def test_what_a_snapshot_carries_is_not_believed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with pytest.raises(Unfit, match="not here"):
        preload.bring(str(folder), DIGEST, str(tmp_path))
    (tmp_path / preload.CARRIED).write_bytes(b"oen")
    with pytest.raises(Unfit, match=f"is not the GPU memory library {DIGEST}"):
        preload.bring(str(folder), DIGEST, str(tmp_path))
    assert not folder.exists()
    with pytest.raises(Unfit, match="not here"):
        preload.carry(str(folder), DIGEST, str(tmp_path))


def test_two_pods_at_once(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find none; whoever is later takes the other's."""
    link = os.link

    def late(source: str, target: str) -> None:
        Path(target).write_bytes(b"one")
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    path = keep(str(tmp_path), str(library))
    assert Path(path).read_bytes() == b"one"
    assert len(os.listdir(tmp_path)) == 2


def test_no_library_in_this_installation(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        keep(str(tmp_path), str(tmp_path / "nowhere.so"))
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path, library: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        keep(str(tmp_path / "file"), str(library))


def test_it_needs_no_openssl(tmp_path: Path, library: Path) -> None:
    """hashlib would: in every shim of a pod with GPUs."""
    checkout = Path(__file__).resolve().parents[3]
    program = (
        f"import sys; sys.path[:0] = [{str(checkout)!r}]; from shim.gpu import preload;"
        f"print(preload.keep({str(tmp_path)!r}, {str(library)!r}), *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-c", program], capture_output=True, text=True, check=True
    )
    path, *modules = done.stdout.split()
    assert DIGEST in path
    assert not {"hashlib", "_hashlib", "re", "pathlib"} & set(modules)
