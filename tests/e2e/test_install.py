"""install.sh and uninstall.sh in a folder of their own, judged by a real containerd."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from bed import fetch
from bed.environment import copied
from bed.images import BUSYBOX_IMAGE
from bed.lane import Installation, Lane, chosen_versions, opened

RUNTIMECLASS = Path(__file__).resolve().parents[2] / "runtimeclass"
pytestmark = pytest.mark.timeout(400)


class Node(NamedTuple):
    """A node's folders, below one folder."""

    root: Path
    containerd: Path
    package: Path

    @property
    def prefix(self) -> Path:
        return self.root / "opt"

    @property
    def config(self) -> Path:
        return self.root / "etc" / "thaw" / "config.toml"

    @property
    def main(self) -> Path:
        return self.root / "etc" / "containerd" / "config.toml"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def libraries(self) -> Path:
        return self.root / "libraries"

    def install(self, *arguments: str) -> str:
        options = {
            "--prefix": self.prefix,
            "--bin": self.root / "bin",
            "--config": self.config,
            "--snapshots": self.snapshots,
            "--containerd": self.containerd,
            "--containerd-config": self.main,
            "--package": self.package,
        }
        words = [str(word) for pair in options.items() for word in pair]
        return _run("install.sh", [*words, *arguments])

    def uninstall(self, *arguments: str) -> str:
        return _run("uninstall.sh", ["--prefix", str(self.prefix), *arguments])

    def files(self) -> set[str]:
        return {
            str(path) for path in self.root.rglob("*") if not path.is_dir() or path.is_symlink()
        }


def _run(script: str, arguments: Sequence[str]) -> str:
    command = ["bash", str(RUNTIMECLASS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script}: {done.stderr}")
    return done.stdout


@pytest.fixture(scope="module")
def installed_node(
    tmp_path_factory: pytest.TempPathFactory, installation: Installation | None
) -> Iterator[Node]:
    if installation is None or not (installation.bin / "python").exists():
        pytest.skip("this checkout is not to be installed")
    python = installation.bin / "python"
    folder = tmp_path_factory.mktemp("wheel")
    pip = [str(python), "-m", "pip", "wheel", "-qq", "--no-deps", "-w", str(folder)]
    subprocess.run([*pip, str(RUNTIMECLASS.parent)], check=True)
    containerd = fetch.containerd(chosen_versions()[-1]) / "containerd"
    node = Node(tmp_path_factory.mktemp("node"), containerd, next(folder.iterdir()))
    node.install("--write-containerd")
    yield node
    node.uninstall("--purge", "--force")


def test_everything_is_in_its_place(installed_node: Node) -> None:
    commands = sorted(path.name for path in (installed_node.root / "bin").iterdir())
    assert commands == ["containerd-shim-thaw-v1", "thaw", "thaw-hook-network"]
    assert installed_node.snapshots.stat().st_mode & 0o777 == 0o700
    shim = installed_node.root / "bin/containerd-shim-thaw-v1"
    assert subprocess.check_output([shim, "-v"], text=True)


def test_a_second_run_changes_nothing(installed_node: Node) -> None:
    before = installed_node.files()
    said = installed_node.install("--write-containerd")
    assert installed_node.files() == before
    assert "up to date" in said
    assert "nothing to change" in said


def test_a_dry_run_changes_nothing(installed_node: Node) -> None:
    before = installed_node.files()
    assert "would rm" in installed_node.uninstall("--dry-run")
    installed_node.install("--dry-run")
    assert installed_node.files() == before


def test_print_is_what_write_writes(installed_node: Node) -> None:
    assert installed_node.main.parent.joinpath("conf.d/thaw.toml").read_text() in (
        installed_node.install("--print-containerd")
    )


def test_shims_that_run_keep_it_installed(installed_node: Node) -> None:
    commands = Installation(installed_node.root / "bin")
    with opened(chosen_versions()[-1], commands, layers=False) as lane:
        _runs_a_pod(lane)
        pod = lane.run_pod("runs")
        with pytest.raises(RuntimeError, match="shims are running"):
            installed_node.uninstall()
        pod.remove()


def _runs_a_pod(lane: Lane) -> None:
    with lane.pod("installed") as pod:
        container = pod.container("app", BUSYBOX_IMAGE, ["echo", "hello"]).start()
        assert container.wait() == 0
        assert container.wait_for_log("hello") == "hello\n"  # maybe after its end


@pytest.mark.parametrize(("edited", "mine"), [(False, True), (True, False)])
def test_uninstall_reverts_and_keeps_what_is_yours(
    installed_node: Node, tmp_path: Path, edited: bool, mine: bool
) -> None:
    """Snapshots stay, and the versions of the GPU memory library that they need with them."""
    node = installed_node._replace(root=tmp_path)
    # Or pip would take its time again; what was chosen for the first one is left out.
    copied(installed_node.prefix, node.prefix, "installed")
    assert "up to date" in node.install("--write-containerd")
    assert f'gpu.preloaded = "{node.libraries}"' in node.config.read_text()
    node.libraries.mkdir()
    (node.libraries / f"libthaw-gpu-{'0' * 64}.so").touch()
    if mine:
        (node.snapshots / "mine").mkdir()
    if edited:
        node.config.write_text(node.config.read_text() + "# mine\n")
    said = node.uninstall()
    assert ("the snapshots in" in said) == mine
    assert node.config.exists() == edited
    assert node.snapshots.exists() == node.libraries.exists() == mine
    assert not mine or os.listdir(node.snapshots) == ["mine"]
    assert not mine or len(os.listdir(node.libraries)) == 1
    assert not node.prefix.exists()
    assert not node.main.exists()
    assert "nothing is installed" in node.uninstall()
