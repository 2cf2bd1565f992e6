"""The hook in the `hooks` section of a spec: runc runs it, and heeds its exit status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.namespaces import Namespace, Network

CACHE = Path(os.environ.get("THAW_CACHE", "/var/cache/thaw"))
RUNC = next((str(p) for p in (CACHE / "runc/usr").glob("*bin/runc")), shutil.which("runc"))
BUSYBOX = CACHE / "busybox/bin/busybox"
CHECKOUT = Path(__file__).resolve().parents[3]

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="containers need root"),
    pytest.mark.skipif(not RUNC or not BUSYBOX.exists(), reason="see tests/run.sh"),
]


@pytest.fixture
def pod() -> Iterator[Namespace]:
    with Network() as network:
        yield network.pod(30)


class Bundle:
    """A container whose network is a pod's, with the hook at one stage of its making."""

    def __init__(self, folder: Path, pod: Namespace, *options: str) -> None:
        self.folder = folder
        (folder / "rootfs/bin").mkdir(parents=True)
        shutil.copy(BUSYBOX, folder / "rootfs/bin/sleep")
        kinds = ("pid", "mount", "ipc", "uts")
        hook = {
            "path": sys.executable,
            "args": [sys.executable, "-m", "oci_hooks.network", *options],
            "env": [f"PYTHONPATH={CHECKOUT}"],
            "timeout": 30,
        }
        spec: dict[str, Any] = {
            "ociVersion": "1.0.2",
            "hostname": "from-the-spec",
            "root": {"path": "rootfs"},
            "process": {"args": ["/bin/sleep", "60"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "namespaces": [*({"type": k} for k in kinds), {"type": "network", "path": pod.path}]
            },
            "hooks": {"createRuntime": [hook]},
        }
        (folder / "config.json").write_text(json.dumps(spec))
        self.id = f"thaw-hook-{os.getpid()}"

    def runc(self, *words: str) -> subprocess.CompletedProcess[str]:
        assert RUNC
        # A file, not a pipe: the container's process holds it open.
        with open(self.folder / "said", "w+") as said:
            done = subprocess.run(
                [RUNC, "--root", str(self.folder / "state"), *words, self.id],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, check=False, timeout=60,
                cwd=self.folder, text=True,
            )  # fmt: skip
            said.seek(0)
            done.stdout = said.read()
        return done


def test_before_the_container_is_made(pod: Namespace, tmp_path: Path) -> None:
    pod.ip("link", "set", "eth0", "down")
    bundle = Bundle(tmp_path, pod)
    try:
        created = bundle.runc("create")
        assert created.returncode == 0, created.stdout
        assert "LOWER_UP" in pod.ip("link", "show", "eth0")
        assert json.loads(bundle.runc("state").stdout)["status"] == "created"
    finally:
        assert bundle.runc("delete", "--force").returncode == 0


def test_a_hook_that_says_no(pod: Namespace, tmp_path: Path) -> None:
    bundle = Bundle(tmp_path, pod, "--address", "10.1.1.1", "--timeout", "5")
    try:
        created = bundle.runc("create")
        assert created.returncode != 0
        assert "thaw-hook-network: addresses: 10.1.1.1 is not there" in created.stdout
    finally:
        bundle.runc("delete", "--force")
