"""`thaw plan`: what a restore would do, and that nothing is done."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import looked, snapshots
from fakes.command import Said, Thaw
from fakes.pod import make_bundle
from fakes.work import fake_criu

from shim.snapshot.config import SnapshotConfig
from shim.snapshot.host import this_host
from shim.snapshot.origin import origin_of

KINDS = ("pid", "mount", "ipc", "network", "uts")
SPEC = {
    "process": {
        "noNewPrivileges": True,
        "capabilities": {"bounding": ["CAP_SETUID", "CAP_SETGID"]},
    },
    "linux": {"namespaces": [{"type": kind} for kind in KINDS]},
    "mounts": [{"destination": "/cache", "type": "bind", "source": "/host/cache"}],
    "annotations": {"thaw.dev/snapshot": "one"},
}
CACHE = {"volumes/0.tar.0000": snapshots.EMPTY}


@pytest.fixture
def bundle(tmp_path: Path, thaw: Thaw) -> Path:
    thaw.configure(criu=fake_criu(tmp_path), state=str(tmp_path / "state"))
    return make_bundle(tmp_path / "bundles" / "c", ["serve"], SPEC)


def fitting(bundle: Path) -> SnapshotConfig:
    """The document of a snapshot that was made here, in that container, with a volume."""
    origin = origin_of(json.loads((bundle / "config.json").read_text()), "", "")
    made = replace(snapshots.CONFIG, origin=origin, host=this_host("4.2"), files={})
    return replace(made, volumes=["/cache"], difference=False)


def plan(thaw: Thaw, bundle: Path, *words: str) -> Said:
    return thaw("plan", "--bundle", str(bundle), *words, "--address", "/none")


def tree(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def test_the_steps(thaw: Thaw, bundle: Path, tmp_path: Path) -> None:
    made = looked.snapshot(thaw.store, "one", fitting(bundle), CACHE)
    before = tree(tmp_path)
    said = plan(thaw, bundle)
    assert (said.status, said.err) == (0, "")
    assert said.lines[0] == f"restore the snapshot {made.path}"
    assert f"lay {made.path}/volumes/0.tar into /cache (/host/cache)" in said.lines
    images = tmp_path / "state" / "bundles" / "c" / "images"
    assert any(line.startswith(f"runc restore --image-path {images}") for line in said.lines)
    assert "  memory: we fill it past CRIU" in said.lines
    assert tree(tmp_path) == before, "nothing was touched"


def test_json(thaw: Thaw, bundle: Path) -> None:
    made = looked.snapshot(thaw.store, "one", fitting(bundle), CACHE)
    found = plan(thaw, bundle, "-o", "json").json
    assert found["plan"]["index"] == str(made.index)
    assert found["plan"]["volumes"][0]["destination"] == "/cache"
    assert found["steps"] == plan(thaw, bundle).lines
    assert found["reasons"] == []


def test_without_our_engine(thaw: Thaw, bundle: Path, tmp_path: Path) -> None:
    looked.snapshot(thaw.store, "one", fitting(bundle), CACHE)
    thaw.configure(criu=str(tmp_path / "criu"), restore__engine="criu")
    assert "  memory: CRIU restores all of it" in plan(thaw, bundle).lines


def test_another_one_than_the_spec_asks_for(thaw: Thaw, bundle: Path) -> None:
    other = looked.snapshot(thaw.store, "two", replace(fitting(bundle), volumes=[]))
    said = plan(thaw, bundle)
    assert (said.status, said.out) == (3, "")
    assert f"restore the snapshot {other.path}" in plan(thaw, bundle, "two").lines


def test_one_that_does_not_fit(thaw: Thaw, bundle: Path) -> None:
    """The plan is printed all the same, and why it would not come to it."""
    what = fitting(bundle)
    looked.snapshot(thaw.store, "one", replace(what, origin=replace(what.origin, cwd="/x")), CACHE)
    said = plan(thaw, bundle)
    assert said.status == 4
    assert said.lines[0].startswith("restore the snapshot")
    assert "it would not be restored: cwd was /x" in said.err
    assert plan(thaw, bundle, "-q").err == ""


def test_one_that_has_no_place(thaw: Thaw, bundle: Path) -> None:
    looked.snapshot(thaw.store, "one", replace(fitting(bundle), volumes=["/gone"]), CACHE)
    said = plan(thaw, bundle)
    assert (said.status, said.out) == (4, "")
    assert "no volume at /gone" in said.err


def test_bare_images(thaw: Thaw, bundle: Path, tmp_path: Path) -> None:
    images = looked.images(tmp_path / "bare")
    said = plan(thaw, bundle, str(images))
    assert (said.status, said.lines[0]) == (0, f"restore the snapshot {images}")


def test_what_a_spec_can_ask_for(thaw: Thaw, bundle: Path) -> None:
    spec = json.loads((bundle / "config.json").read_text())
    for notes, status, words in (
        ({}, 2, "asks for no snapshot"),
        ({"thaw.dev/snapshot": "auto"}, 3, "nothing was made for `auto`"),
        ({"thaw.dev/snapshot": "../x"}, 2, "bad snapshot reference"),
    ):
        (bundle / "config.json").write_text(json.dumps({**spec, "annotations": notes}))
        said = plan(thaw, bundle)
        assert (said.status, said.out) == (status, "")
        assert words in said.err
    assert not os.path.lexists(thaw.store.folder / "key"), "looking makes no key"


def test_a_wrong_call(thaw: Thaw) -> None:
    with pytest.raises(SystemExit):
        thaw("plan")
    with pytest.raises(SystemExit):
        thaw("plan", "--bundle", "/x", "--container", "y")
