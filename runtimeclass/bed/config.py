"""containerd's configuration file for a lane: version 2 for 1.x, version 3 for 2.x.

Everything that containerd would put in a well-known place lies in the lane's folder instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

PAUSE_IMAGE = "thaw.local/pause:1"


class Places(NamedTuple):
    """The folders and sockets of one lane; all lie in one folder."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "containerd.toml"

    @property
    def socket(self) -> Path:
        return self.folder / "c.sock"  # short: a socket's path ends at 107 bytes

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def log(self) -> Path:
        return self.folder / "containerd.log"

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    @property
    def cni(self) -> Path:
        return self.folder / "cni"

    @property
    def leases(self) -> Path:
        return self.folder / "leases"

    @property
    def runc_root(self) -> Path:
        return self.folder / "runc"

    @property
    def pods(self) -> Path:
        return self.folder / "pods"

    @property
    def thaw_config(self) -> Path:
        return self.folder / "thaw.toml"

    @property
    def thaw_state(self) -> Path:
        return self.folder / "thaw"

    @property
    def snapshots(self) -> Path:
        return self.folder / "snapshots"

    @property
    def libraries(self) -> Path:
        return self.folder / "libraries"

    @property
    def audit(self) -> Path:
        return self.folder / "audit.log"


def containerd_config(places: Places, version: str, plugins: Path) -> str:
    """The whole configuration file; `plugins` is the folder of the CNI plugins."""
    return _common(places, version) + (_two if version.startswith("2") else _one)(places, plugins)


def thaw_config(places: Places, criu: Path) -> str:
    """Thaw's own configuration for this lane, named by ConfigPath."""
    return f"""\
state = "{places.thaw_state}"
snapshots = "{places.snapshots}"
audit.log = "{places.audit}"
gpu.preloaded = "{places.libraries}"
policy.auto = "*"
policy.checkpoint = "*"
criu = "{criu}"
BinaryName = "{places.bin}/runc"
Root = "{places.runc_root}"
"""


def _common(places: Places, version: str) -> str:
    return f"""\
version = {3 if version.startswith("2") else 2}
root = "{places.root}"
state = "{places.state}"
temp = "{places.folder}/temp"

[grpc]
address = "{places.socket}"

[debug]
level = "debug"

[plugins."io.containerd.internal.v1.opt"]
path = "{places.folder}/opt"
"""


def _one(places: Places, plugins: Path) -> str:
    section = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""
[{section}]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"

[{section}.cni]
bin_dir = "{plugins}"
conf_dir = "{places.cni}"

[{section}.containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
{_runtimes(section, places)}"""


def _two(places: Places, plugins: Path) -> str:
    section = 'plugins."io.containerd.cri.v1.runtime"'
    return f"""
[plugins."io.containerd.nri.v1.nri"]
disable = true

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.grpc.v1.cri"]
stream_server_address = "127.0.0.1"
stream_server_port = "0"

[{section}]
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[{section}.cni]
bin_dirs = ["{plugins}"]
conf_dir = "{places.cni}"

[{section}.containerd]
default_runtime_name = "runc"
{_runtimes(section, places)}"""


def _runtimes(section: str, places: Places) -> str:
    return f"""
[{section}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[{section}.containerd.runtimes.runc.options]
BinaryName = "{places.bin}/runc"
Root = "{places.runc_root}"

[{section}.containerd.runtimes.thaw]
runtime_type = "io.containerd.thaw.v1"
pod_annotations = ["thaw.dev/*"]
container_annotations = ["thaw.dev/*"]

[{section}.containerd.runtimes.thaw.options]
TypeUrl = "runtimeoptions.v1.Options"
ConfigPath = "{places.thaw_config}"
"""
