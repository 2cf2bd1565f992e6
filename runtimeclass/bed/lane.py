"""One private containerd with everything that belongs to it: a folder, a cgroup, a bridge.

The machine's own containerd, its configuration and its network are not touched. A lane's containerd
has the handlers `runc` (containerd's own shim) and `thaw` (the installed product, if there is one).
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import grpc

from bed import fetch, images
from bed.config import Places, containerd_config, thaw_config
from bed.cri import api_pb2 as api
from bed.cri.client import Client
from bed.dismantle import BRIDGE, OWNER, PREFIX, dismantle
from bed.leaks import Holdings, holdings, process_identity, processes, shim_sockets
from bed.network import free_subnets, make_bridge, write_configuration
from bed.pod import Pod, pod_config

CRI_NAMESPACE = "k8s.io"
RUNTIMES = {"runc": "io.containerd.runc.v2", "thaw": "io.containerd.thaw.v1"}
_START_SECONDS = 60.0
_LOG_WIDTH = 1000


class Installation(NamedTuple):
    """An installed Thaw: the folder with its commands."""

    bin: Path

    @property
    def thaw(self) -> Path:
        return self.bin / "thaw"

    @property
    def shim(self) -> Path:
        return self.bin / "containerd-shim-thaw-v1"


class Lane:
    """A containerd of one version; see `opened` for a whole life."""

    def __init__(self, version: str, installation: Installation | None = None) -> None:
        self.version = version
        self.installation = installation
        self.places = Places(_new_folder(version))
        self.name = self.places.folder.name  # of its containerd namespace and its cgroup, too
        self.bridge = f"thaw{self.name[-8:]}"
        self.subnets = free_subnets()
        self._binaries = fetch.containerd(version)
        self._daemon: subprocess.Popen[bytes] | None = None
        self._sockets: set[Path] = set()
        self.cri = Client(self.places.socket)
        self._lay_out()

    @property
    def pid(self) -> int:
        """containerd's pid, or 0."""
        return self._daemon.pid if self._daemon else 0

    def start(self) -> None:
        """Start containerd and wait until pods can be run."""
        with open(self.places.log, "ab") as log:
            command = [str(self._binaries / "containerd"), "--config", str(self.places.config)]
            self._daemon = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment()
            )
        try:
            _wait_for(self.cri.ready, "the runtime")
        except TimeoutError as error:
            raise RuntimeError(f"containerd {self.version} did not start: {self.log()}") from error

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End containerd; shims and containers stay."""
        if self._daemon:
            self._daemon.send_signal(how)
            self._daemon.wait(60)
            self._daemon = None

    def restart(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End containerd and start it again over the same shims."""
        self.stop(how)
        self.start()

    def import_images(self, *, layers: bool = True, ctr: bool = True) -> None:
        """Import the test images, for pods and for `ctr`; that of many layers takes its time."""
        for namespace in (CRI_NAMESPACE, self.name) if ctr else (CRI_NAMESPACE,):
            path = str(images.archive(layers=layers))
            self.ctr("images", "import", path, namespace=namespace)
        for name in images.names(layers=layers):  # the CRI learns of an image by an event
            _wait_for(partial(self.cri.has_image, name), f"image {name}")

    def run_pod(
        self,
        name: str,
        *,
        handler: str = "thaw",
        annotations: Mapping[str, str] | None = None,
        namespaces: api.NamespaceOption | None = None,
    ) -> Pod:
        """Run a pod with a runtime handler (`runc` or `thaw`), as the kubelet would."""
        config = pod_config(name, self.places.pods, f"/{self.name}", annotations or {}, namespaces)
        Path(config.log_directory).mkdir(parents=True)
        request = api.RunPodSandboxRequest(config=config, runtime_handler=handler)
        answer = self.cri.call("RunPodSandbox", request)
        self._see_sockets()
        return Pod(self.cri, answer.pod_sandbox_id, config)

    @contextmanager
    def pod(
        self,
        name: str,
        *,
        handler: str = "thaw",
        annotations: Mapping[str, str] | None = None,
        namespaces: api.NamespaceOption | None = None,
    ) -> Iterator[Pod]:
        """A pod that is removed at the end of the block."""
        pod = self.run_pod(name, handler=handler, annotations=annotations, namespaces=namespaces)
        try:
            yield pod
        finally:
            pod.remove()

    def ctr(
        self, *arguments: str, namespace: str = "", check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run this version's `ctr`, by default in the lane's own namespace."""
        head = [str(self._binaries / "ctr"), "-a", str(self.places.socket)]
        command = [*head, "-n", namespace or self.name, *arguments]
        return self._run(command, check, timeout)

    def runtime_arguments(self, handler: str = "thaw") -> list[str]:
        """What `ctr run` needs to run with a handler as pods do."""
        chosen = ["--runtime", RUNTIMES[handler], "--cgroup", f"/{self.name}/ctr"]
        if handler == "thaw":
            chosen += ["--runtime-config-path", str(self.places.thaw_config)]
        return chosen

    def thaw(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the installed `thaw` command with this lane's configuration."""
        if self.installation is None:
            raise RuntimeError("this lane has no installed thaw")
        verb, *rest = arguments
        config = str(self.places.thaw_config)
        command = [str(self.installation.thaw), verb, *rest, "--config", config]
        return self._run(command, check, timeout=300)

    def holdings(self) -> Holdings:
        """What the lane owns now, containerd itself left out."""
        self._see_sockets()
        return holdings(self.places.folder, self.bridge, self.pid, set(self._sockets))

    def leaks(self, since: Holdings, seconds: float = 30) -> dict[str, list[str]]:
        """What is there now and was not then; waits for what is still being removed."""
        ends = time.monotonic() + seconds
        while (left := self.holdings().since(since)) and time.monotonic() < ends:
            time.sleep(0.1)
            if set(left) == {"files"} and self._daemon:
                self._collect_garbage()
        return left

    def _collect_garbage(self) -> None:
        # containerd 2.x now and then forgets a removed snapshot's folder until its next collection,
        # with its own shim too; the end of a lease can be waited for, and so can that.
        self.ctr("leases", "create", "--id", "bed")
        self.ctr("leases", "delete", "--sync", "bed")

    def log(self, lines: int = 40) -> str:
        """The end of containerd's log, shims' lines included, without the debug lines."""
        if not self.places.log.exists():
            return "(its log is gone with the lane)"
        text = self.places.log.read_text(errors="replace")
        told = [line[:_LOG_WIDTH] for line in text.splitlines() if "level=debug" not in line]
        return "\n".join(told[-lines:])

    def clear(self) -> None:
        """Remove all pods, and all containers and tasks that `ctr` made."""
        for item in self.cri.call("ListPodSandbox", api.ListPodSandboxRequest()).items:
            request = api.StopPodSandboxRequest(pod_sandbox_id=item.id)
            self.cri.call("StopPodSandbox", request)
            self.cri.call("RemovePodSandbox", api.RemovePodSandboxRequest(pod_sandbox_id=item.id))
        for container in self.ctr("containers", "list", "--quiet").stdout.split():
            self.ctr("tasks", "delete", "--force", container, check=False)
            self.ctr("containers", "delete", container)

    def take_down(self) -> None:
        """Remove everything: in an orderly way as far as containerd lets us, the rest by force."""
        try:
            if self._daemon:
                self.clear()
        finally:
            self.stop()
            self.cri.close()
            dismantle(self.places.folder)

    def environment(self) -> dict[str, str]:
        """The environment of containerd: our commands first, and no proxy."""
        system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": f"{self.places.bin}:{system}", "HOME": "/root", "LANG": "C.UTF-8"}

    def _run(
        self, command: Sequence[str], check: bool, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        environment = self.environment()
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr}")
        return done

    def _see_sockets(self) -> None:
        self._sockets.update(shim_sockets(processes(self.places.folder)))

    def _lay_out(self) -> None:
        places = self.places
        criu = fetch.criu()
        for folder in (places.bin, places.pods, places.snapshots):
            folder.mkdir(mode=0o700)
        for part in ("names", "digests", "leases", "lost", "snapshots"):  # a store keeps them
            (places.snapshots / part).mkdir(mode=0o700)
        commands: Sequence[Path] = [
            *(fetch.runc(), criu, self._binaries / "containerd-shim-runc-v2"),
            *([self.installation.shim, self.installation.thaw] if self.installation else []),
        ]
        for command in commands:
            (places.bin / command.name).symlink_to(command)
        (places.folder / OWNER).write_text(" ".join(process_identity(os.getpid())))
        (places.folder / BRIDGE).write_text(self.bridge)
        write_configuration(places.cni, self.name, self.bridge, self.subnets, places.leases)
        make_bridge(self.bridge, self.subnets)
        places.config.write_text(containerd_config(places, self.version, fetch.cni()))
        places.thaw_config.write_text(thaw_config(places, criu))


def chosen_versions() -> list[str]:
    """The containerd versions to try things on."""
    return os.environ.get("THAW_TEST_LANES", "1.6,2.x").split(",")


@contextmanager
def opened(
    version: str,
    installation: Installation | None = None,
    *,
    layers: bool = True,
    ctr: bool = True,
) -> Iterator[Lane]:
    """A lane that runs, has the test images, and is taken down at the end of the block.

    Without `layers` it has not the image of many layers, without `ctr` none that `ctr` could run.
    """
    lane = Lane(version, installation)
    try:
        lane.start()
        lane.import_images(layers=layers, ctr=ctr)
        yield lane
    finally:
        lane.take_down()


def _new_folder(version: str) -> Path:
    """A folder of an unused name; without an underscore, which no containerd namespace has."""
    while "_" in (folder := tempfile.mkdtemp(prefix=f"{PREFIX}{version}-")):
        os.rmdir(folder)
    return Path(folder)


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + _START_SECONDS
    while not _holds(condition):
        if time.monotonic() > ends:
            raise TimeoutError(f"{what} is not ready after {_START_SECONDS} s")
        time.sleep(0.02)


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except grpc.RpcError:
        return False  # the service is not registered yet
