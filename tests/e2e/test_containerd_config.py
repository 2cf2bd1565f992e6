"""The node's containerd configuration, judged by containerd itself (`config dump`)."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import containerd_config as configuration
import pytest
from bed import fetch
from bed.lane import chosen_versions

LANES = chosen_versions()
DEBIAN = """\
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
"""
KUBEADM = """\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "example.invalid/pause:9" # the node's own
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = true
"""


def _main_files(version: str) -> dict[str, str | None]:
    containerd = str(fetch.containerd(version) / "containerd")
    default = subprocess.check_output([containerd, "config", "default"], text=True)
    files = {"absent": None, "debian": DEBIAN, "kubeadm": KUBEADM, "default": default}
    if version.startswith("2"):
        files["imports"] = 'version = 3\nimports = ["conf.d/*.toml", "/nowhere/*.toml"]\n'
    return files


@pytest.fixture(
    params=[
        (version, kind) for version in LANES for kind in ("absent", "debian", "kubeadm", "default")
    ]
    + [(version, "imports") for version in LANES if version.startswith("2")],
    ids="-".join,
)
def node(request: pytest.FixtureRequest, tmp_path: Path) -> configuration.Node:
    version, kind = request.param
    main = tmp_path / "etc" / "config.toml"
    text = _main_files(version)[kind]
    if text is not None:
        main.parent.mkdir()
        main.write_text(text)
    executable = str(fetch.containerd(version) / "containerd")
    return configuration.Node(main, main.parent / "conf.d/thaw.toml", "/etc/t.toml", executable)


def _seen_by_containerd(node: configuration.Node) -> dict[str, Any]:
    command = [node.containerd, "--config", str(node.main), "config", "dump"]
    dump = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    seen = tomllib.loads(dump)
    seen.pop("imports", None)
    return seen


def _handlers(seen: dict[str, Any]) -> dict[str, Any]:
    handlers: dict[str, Any] = next(
        section["containerd"]["runtimes"]
        for name, section in seen["plugins"].items()
        if name in configuration.SECTIONS.values() and "containerd" in section
    )
    return handlers


def test_only_the_handler_is_added_and_removed(node: configuration.Node) -> None:
    before_text = node.text
    if not before_text:
        node.main.parent.mkdir()
        node.main.write_text(f"version = {2 if node.major() < 2 else 3}\n")
    before = _seen_by_containerd(node)
    if not before_text:
        node.main.unlink()

    assert configuration.apply(node, configuration.add(node), dry_run=False)
    seen = _seen_by_containerd(node)
    handler = _handlers(seen).pop("thaw")
    assert handler["runtime_type"] == "io.containerd.thaw.v1"
    assert handler["pod_annotations"] == ["thaw.dev/*"]
    assert handler["options"]["ConfigPath"] == "/etc/t.toml"
    assert seen == before

    assert configuration.apply(node, configuration.add(node), dry_run=False) == []

    assert configuration.apply(node, configuration.remove(node), dry_run=False)
    assert node.text.strip() == before_text.strip()
    assert node.main.exists() == bool(before_text)
    assert not node.drop_in.exists()
    assert configuration.apply(node, configuration.remove(node), dry_run=False) == []


def test_a_changed_main_file_is_backed_up(node: configuration.Node) -> None:
    before = node.text
    configuration.apply(node, configuration.add(node), dry_run=False)
    copies = list(node.main.parent.glob("config.toml.before-thaw-*"))
    changed = bool(before) and node.text != before
    assert [copy.read_text() for copy in copies] == ([before] if changed else [])


def test_a_dry_run_changes_nothing(node: configuration.Node) -> None:
    before = node.text
    assert configuration.apply(node, configuration.add(node), dry_run=True)
    assert node.text == before
    assert not node.drop_in.exists()


def test_a_handler_of_somebody_else_is_refused(tmp_path: Path) -> None:
    main = tmp_path / "config.toml"
    main.write_text(KUBEADM + configuration.handler_text(2, "/x", head=""))
    executable = str(fetch.containerd(LANES[0]) / "containerd")
    node = configuration.Node(main, tmp_path / "conf.d/thaw.toml", "/x", executable)
    with pytest.raises(configuration.Refused, match="not ours"):
        configuration.add(node)


def test_systemd_cgroups_are_noticed(tmp_path: Path) -> None:
    main = tmp_path / "config.toml"
    executable = str(fetch.containerd(LANES[0]) / "containerd")
    node = configuration.Node(main, tmp_path / "conf.d/thaw.toml", "/x", executable)
    assert not configuration.systemd_cgroup(node)
    main.write_text(KUBEADM)
    assert configuration.systemd_cgroup(node)
