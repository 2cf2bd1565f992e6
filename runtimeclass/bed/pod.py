"""Pods and containers as objects, made through the CRI with what the kubelet would send.

`lane.run_pod("web", annotations={…})` runs a pod; `pod.container("app", image, ["cmd"])` creates a
container in it; verbs are methods. Everything is removed by `pod.remove()`, or with the lane.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bed.cri import api_pb2 as api
from bed.cri.client import DEADLINE, Client

# What the kubelet hides in /proc and /sys of every container that is not privileged.
MASKED_PATHS = [
    *("/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"),
]
READONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


class Mount(NamedTuple):
    """A host file or folder in a container, like a hostPath volume."""

    host: Path | str
    container: str
    readonly: bool = True


class Executed(NamedTuple):
    """What a command in a container gave back."""

    exit_code: int
    stdout: str
    stderr: str


class Pod:
    """A pod that runs."""

    def __init__(self, client: Client, sandbox_id: str, config: api.PodSandboxConfig) -> None:
        self.id = sandbox_id
        self.config = config
        self._client = client

    @property
    def folder(self) -> Path:
        """Where the kubelet would keep this pod's logs and files."""
        return Path(self.config.log_directory)

    @property
    def ip(self) -> str:
        """The pod's address, of IPv4."""
        return str(self.status().network.ip)

    @property
    def ip6(self) -> str:
        """The pod's address of IPv6; empty if this machine has none."""
        return next((str(more.ip) for more in self.status().network.additional_ips), "")

    def status(self) -> api.PodSandboxStatus:
        """The runtime's own record of the pod."""
        request = api.PodSandboxStatusRequest(pod_sandbox_id=self.id)
        status: api.PodSandboxStatus = self._client.call("PodSandboxStatus", request).status
        return status

    def container(
        self,
        name: str,
        image: str,
        args: Sequence[str] = (),
        *,
        env: Mapping[str, str] | None = None,
        mounts: Sequence[Mount] = (),
        annotations: Mapping[str, str] | None = None,
        attempt: int = 0,
        **more: Any,
    ) -> Container:
        """Create a container; `args` is its whole command line, or the image's if empty.

        `more` are further fields of ContainerConfig: `tty=True`, or `linux=linux_config(…)`.
        """
        log_path = f"{name}/{attempt}.log"
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        config = api.ContainerConfig(
            metadata=api.ContainerMetadata(name=name, attempt=attempt),
            image=api.ImageSpec(image=image),
            command=list(args),
            envs=[api.KeyValue(key=k, value=v.encode()) for k, v in (env or {}).items()],
            mounts=[_mount(mount) for mount in (*self._own_mounts(name), *mounts)],
            annotations=dict(annotations or {}),
            log_path=log_path,
            **{"linux": linux_config(), **more},
        )
        request = api.CreateContainerRequest(
            pod_sandbox_id=self.id, config=config, sandbox_config=self.config
        )
        answer = self._client.call("CreateContainer", request)
        return Container(self._client, answer.container_id, name, self.folder / log_path)

    def containers(self) -> list[str]:
        """The ids of the pod's containers."""
        chosen = api.ContainerFilter(pod_sandbox_id=self.id)
        answer = self._client.call("ListContainers", api.ListContainersRequest(filter=chosen))
        return [container.id for container in answer.containers]

    def stop(self) -> None:
        """Stop the pod and all that runs in it."""
        self._client.call("StopPodSandbox", api.StopPodSandboxRequest(pod_sandbox_id=self.id))

    def remove(self) -> None:
        """Stop the pod and remove it with its containers; a removed pod may be removed again."""
        self.stop()
        self._client.call("RemovePodSandbox", api.RemovePodSandboxRequest(pod_sandbox_id=self.id))

    def _own_mounts(self, name: str) -> list[Mount]:
        # Sources that differ from pod to pod, as the kubelet's do: a restore has to cope with them.
        hosts, ending = self.folder / "etc-hosts", self.folder / name / "termination-log"
        network = self.status().network
        own = [network.ip, *(more.ip for more in network.additional_ips)]
        names = "".join(f"{address}\t{self.config.hostname}\n" for address in own)
        hosts.write_text(f"127.0.0.1\tlocalhost\n{names}")
        ending.touch()
        return [
            Mount(hosts, "/etc/hosts", readonly=False),
            Mount(ending, "/dev/termination-log", readonly=False),
        ]


class Container:
    """A container that was created, and maybe started."""

    def __init__(self, client: Client, container_id: str, name: str, log: Path) -> None:
        self.id = container_id
        self.name = name
        self._client = client
        self._log = log

    def start(self, deadline: float = DEADLINE) -> Container:
        """Start it (or restore it, in Start); `deadline` in seconds, the kubelet's by default."""
        request = api.StartContainerRequest(container_id=self.id)
        self._client.call("StartContainer", request, deadline)
        return self

    def starting(self) -> Any:
        """Begin to start it and return a future at once."""
        request = api.StartContainerRequest(container_id=self.id)
        return self._client.start("StartContainer", request)

    def exec(self, command: Sequence[str], timeout: int = 60) -> Executed:
        """Run a command in it and wait for its end, `timeout` seconds at most."""
        request = api.ExecSyncRequest(container_id=self.id, cmd=command, timeout=timeout)
        answer = self._client.call("ExecSync", request)
        return Executed(answer.exit_code, answer.stdout.decode(), answer.stderr.decode())

    def log(self) -> str:
        """Everything it has written, without the line heads (time, stream, full or partial)."""
        text = self._log.read_bytes() if self._log.exists() else b""
        whole = text[: text.rfind(b"\n") + 1].decode()  # containerd may just be writing
        pieces = [line.split(" ", 3) for line in whole.splitlines()]
        return "".join(p[3] + ("\n" if p[2] == "F" else "") for p in pieces if len(p) == 4)

    def status(self) -> api.ContainerStatus:
        """The runtime's own record of it."""
        request = api.ContainerStatusRequest(container_id=self.id)
        status: api.ContainerStatus = self._client.call("ContainerStatus", request).status
        return status

    @property
    def running(self) -> bool:
        """Whether the runtime says that it runs."""
        return self.status().state == api.CONTAINER_RUNNING

    def wait(self, seconds: float = 60) -> int:
        """Wait for its end and return the exit code; the CRI has no call that waits."""
        ends = time.monotonic() + seconds
        while (status := self.status()).state != api.CONTAINER_EXITED:
            if time.monotonic() > ends:
                raise TimeoutError(f"{self.name} still runs after {seconds} s")
            time.sleep(0.05)
        return int(status.exit_code)

    def wait_for_log(self, text: str, seconds: float = 60) -> str:
        """Wait until it has written `text`; return the whole log."""
        ends = time.monotonic() + seconds
        while text not in (log := self.log()):
            if time.monotonic() > ends:
                raise TimeoutError(f"{self.name} has not written {text!r} in {seconds} s: {log}")
            time.sleep(0.02)
        return log

    def stats(self) -> api.ContainerStats:
        """CPU and memory use as the runtime counts it."""
        request = api.ContainerStatsRequest(container_id=self.id)
        stats: api.ContainerStats = self._client.call("ContainerStats", request).stats
        return stats

    def update(self, **resources: Any) -> None:
        """Change limits: fields of LinuxContainerResources."""
        limits = api.LinuxContainerResources(**resources)
        request = api.UpdateContainerResourcesRequest(container_id=self.id, linux=limits)
        self._client.call("UpdateContainerResources", request)

    def checkpoint(self, location: Path, timeout: int = 60) -> None:
        """The kubelet's checkpoint call (containerd 2.0 and later): an archive at `location`."""
        request = api.CheckpointContainerRequest(
            container_id=self.id, location=str(location), timeout=timeout
        )
        self._client.call("CheckpointContainer", request)

    def stop(self, timeout: int = 60) -> None:
        """SIGTERM, and SIGKILL after `timeout` seconds; who ends may get no processor for some."""
        request = api.StopContainerRequest(container_id=self.id, timeout=timeout)
        self._client.call("StopContainer", request)

    def remove(self) -> None:
        """Remove it, running or not."""
        self._client.call("RemoveContainer", api.RemoveContainerRequest(container_id=self.id))


def linux_config(
    seccomp: api.SecurityProfile.ProfileType = api.SecurityProfile.Unconfined, **resources: Any
) -> api.LinuxContainerConfig:
    """What the kubelet sends for an ordinary container; `resources`: LinuxContainerResources."""
    security = api.LinuxContainerSecurityContext(
        namespace_options=_namespaces(),
        masked_paths=MASKED_PATHS,
        readonly_paths=READONLY_PATHS,
        seccomp=api.SecurityProfile(profile_type=seccomp),
    )
    limits = api.LinuxContainerResources(**{"oom_score_adj": 1000, "cpu_shares": 2, **resources})
    return api.LinuxContainerConfig(resources=limits, security_context=security)


def pod_config(
    name: str,
    folder: Path,
    cgroup_parent: str,
    annotations: Mapping[str, str],
    namespaces: api.NamespaceOption | None = None,
) -> api.PodSandboxConfig:
    """What the kubelet sends for an ordinary pod; its files lie in `folder`/UID."""
    uid = str(uuid.uuid4())
    security = api.LinuxSandboxSecurityContext(
        namespace_options=namespaces or _namespaces(),
        seccomp=api.SecurityProfile(profile_type=api.SecurityProfile.RuntimeDefault),
    )
    return api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(name=name, uid=uid, namespace="default"),
        # The kubelet sends none for a pod on the host's network.
        hostname="" if namespaces and namespaces.network == api.NODE else name,
        log_directory=str(folder / uid),
        annotations=dict(annotations),
        labels={"io.kubernetes.pod.name": name, "io.kubernetes.pod.uid": uid},
        linux=api.LinuxPodSandboxConfig(cgroup_parent=cgroup_parent, security_context=security),
    )


def _namespaces() -> api.NamespaceOption:
    # The CRI's default is a pid namespace for the pod; the kubelet asks for one per container.
    return api.NamespaceOption(network=api.POD, pid=api.CONTAINER, ipc=api.POD)


def _mount(mount: Mount) -> api.Mount:
    return api.Mount(
        host_path=str(mount.host), container_path=mount.container, readonly=mount.readonly
    )
