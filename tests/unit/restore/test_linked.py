"""The folder that CRIU reads from: everything by links, but for what has been rewritten."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.work import make_work

from shim.restore import linked
from shim.restore import plan as planning
from shim.restore.addresses import Rewritten
from shim.restore.plan import Plan

FILES = {"core-1.img": b"core", "files.img": b"old", "pagemap-1.img": b"map", "pages-1.img": b"p"}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    images = tmp_path / "images"
    images.mkdir()
    for name, data in FILES.items():
        (images / name).write_bytes(data)
    return planning.bare(make_work(tmp_path), images)


def found(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pagemaps_come_last(plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "links"
    linked.lay(folder, plan, None)
    assert found(folder).keys() == FILES.keys() - {"pagemap-1.img"}
    linked.complete(folder, plan, None)
    assert found(folder) == FILES
    assert all(path.is_symlink() for path in folder.iterdir())


def test_pages_files_that_were_put_together(plan: Plan, tmp_path: Path) -> None:
    other = tmp_path / "assembled"
    other.mkdir()
    (other / "pages-1.img").write_bytes(b"whole")
    linked.lay(tmp_path / "links", replace(plan, assembled=other), None)
    assert found(tmp_path / "links") == {"pages-1.img": b"whole"}


def test_images_of_a_parent_are_found(plan: Plan, tmp_path: Path) -> None:
    (plan.images / "parent").symlink_to("../first")
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "inventory.img").write_bytes(b"first")
    linked.lay(tmp_path / "links", plan, None)
    assert (tmp_path / "links" / "parent" / "inventory.img").read_bytes() == b"first"


@pytest.mark.parametrize("moved", [0, 1])
def test_rewritten_sockets(plan: Plan, tmp_path: Path, moved: int) -> None:
    """In the place of the link, not through it; also the second time."""
    plan = replace(plan, sockets=Rewritten(b"new", moved, 0, 0))
    folder = tmp_path / "links"
    for lay in (linked.lay, linked.complete, linked.lay):
        lay(folder, plan, None)
        assert (folder / "files.img").read_bytes() == (b"new" if moved else b"old")
        assert (folder / "files.img").is_symlink() == (not moved)
    if moved:
        assert os.stat(folder / "files.img").st_mode & 0o777 == 0o600
    assert (plan.images / "files.img").read_bytes() == b"old"


def test_other_images_of_ours(plan: Plan, tmp_path: Path) -> None:
    plan = replace(plan, rewritten={"core-1.img": b"new"})
    folder = tmp_path / "links"
    for lay in (linked.lay, linked.complete, linked.lay):
        lay(folder, plan, None)
        assert (folder / "core-1.img").read_bytes() == b"new"
    assert (plan.images / "core-1.img").read_bytes() == b"core"
