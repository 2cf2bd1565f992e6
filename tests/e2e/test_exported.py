"""Snapshots as files: exported and imported again, kubelet's archives, and CRIU's own images."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from asking import audited, comes_back
from bed.fetch import criu
from bed.lane import Lane
from stored import exists, ids, path_of
from workers import Told, ask, boot, checkpoint

pytestmark = [pytest.mark.one_lane]


class Files(NamedTuple):
    """What was made of one worker, which asked for nothing meanwhile."""

    told: Told
    tar: Path
    digest: str
    kubelets: Path
    images: Path


@pytest.fixture(scope="module")
def files(lane: Lane, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    with lane.pod("worker") as pod:
        container = boot(pod)
        told = ask(container)
        container.checkpoint(folder / "kubelets.tar")
        checkpoint(lane, container, "worker")
    done = lane.thaw("export", "worker", str(folder / "worker.tar"), "-o", "json")
    lane.thaw("export", "worker", "--criu", str(folder / "images"))
    lane.thaw("rm", "worker")
    assert ids(lane) == set()
    digest = json.loads(done.stdout)["digest"]
    return Files(told, folder / "worker.tar", digest, folder / "kubelets.tar", folder / "images")


def test_exported_removed_imported(lane: Lane, files: Files) -> None:
    done = lane.thaw("import", str(files.tar), "back", "-o", "json")
    made = json.loads(done.stdout)
    assert made["digest"] == files.digest
    assert path_of(lane, "back").name == made["id"]
    comes_back(lane, f"back@{files.digest}", files.told)
    line = audited(lane, "create")[-1]
    assert (line["name"], line["outcome"]) == ("back", "imported")
    again = lane.thaw("import", str(files.tar), "back", check=False)
    assert again.returncode == 7
    assert len(ids(lane)) == 1


def test_what_kubelet_made(lane: Lane, files: Files) -> None:
    lane.thaw("import", str(files.kubelets), "kubelets")
    shown = json.loads(lane.thaw("show", "kubelets", "-o", "json").stdout)
    assert shown["config"]["origin"]["container"] == "app"
    comes_back(lane, "kubelets", files.told)
    assert lane.thaw("verify", "kubelets", "--seal").returncode == 0
    comes_back(lane, "kubelets", files.told)


def test_an_archive_that_is_cut_off(lane: Lane, files: Files, tmp_path: Path) -> None:
    for whole in (files.tar, files.kubelets):
        data = whole.read_bytes()
        part = tmp_path / whole.name
        part.write_bytes(data[: len(data) * 2 // 3])
        done = lane.thaw("import", str(part), "part", check=False)
        assert done.returncode == 4, done.stderr
        assert "Traceback" not in done.stderr
    assert not exists(lane, "part")
    assert ids(lane) == set()


def test_something_else(lane: Lane, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("no tar at all\n" * 100)
    done = lane.thaw("import", str(other), "other", check=False)
    assert done.returncode == 4
    assert "neither an exported snapshot nor a checkpoint" in done.stderr
    assert "thaw rm" not in done.stderr


def test_images_for_stock_tools(lane: Lane, files: Files, tmp_path: Path) -> None:
    folder = str(files.images)
    parent = tmp_path / "parent"
    shutil.copytree(folder, parent)
    # Stock CRIU reads all memory of a folder, and takes from its parent what is in both.
    (files.images / "parent").symlink_to(parent)
    subprocess.run([str(criu()), "dedup", "-D", folder], check=True, timeout=30)
    (files.images / "parent").unlink()
    pages = list(parent.glob("pages-*.img"))
    assert pages
    assert [path.stat().st_blocks for path in pages] == [0] * len(pages)
    inspected = lane.thaw("inspect", folder).stdout
    assert "sleep" in inspected
    lane.thaw("index", folder)
    assert json.loads(lane.thaw("inspect", folder, "-o", "json").stdout)["notes"] == []
