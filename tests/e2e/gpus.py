"""A lane with a GPU that is none, and the worker that uses it: for the tests of GPU workers."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from bed.cri import api_pb2 as api
from bed.images import HOST_IMAGE
from bed.lane import CRI_NAMESPACE, Installation, Lane, chosen_versions
from bed.pod import Container, Mount, Pod
from fakes import gpu
from fakes.cuda import VARIABLE, FakeCuda
from fakes.nvml import FakeNvml
from stored import forget_snapshots
from workers import PYTHON, USR, Told, children, init_pid, wait_until

SERVER = Path(__file__).parents[1] / "fakes" / "cuda_server.py"
ATTEMPTS = count()
PORT = "7000"


class GpuLane(Lane):
    """A lane whose shims find a driver and an NVML."""

    def __init__(self, installation: Installation, fakes: Path) -> None:
        self.cuda = FakeCuda(fakes / "cuda")
        self.nvml = FakeNvml(fakes)
        self.node = fakes / "nvidia0"
        os.mknod(self.node, stat.S_IFCHR | 0o600, os.makedev(195, 0))
        super().__init__(chosen_versions()[-1], installation)
        self.more = f'gpu.library = "{self.cuda.library}"\ngpu.wait = 0.3\n'
        with open(self.places.thaw_config, "a") as file:
            file.write(self.more)

    def environment(self) -> dict[str, str]:
        """The environment of containerd, and so of all shims."""
        fakes = {VARIABLE: str(self.cuda.folder), "THAW_FAKE_NVML": str(self.nvml.world)}
        fakes["LD_LIBRARY_PATH"] = str(self.nvml.library.parent)
        return {**super().environment(), **fakes}

    def worker(self, pod: Pod) -> Container:
        """A container with a GPU, not started yet."""
        return pod.container(
            "app",
            HOST_IMAGE,
            [PYTHON, "-ISu", "/app/server.py", "/cuda/libcuda.so.1"],
            mounts=[USR, Mount(SERVER, "/app/server.py"), Mount(self.cuda.folder, "/cuda")],
            devices=[device(self.node)],
            attempt=next(ATTEMPTS),
        )

    def program(self, pod: Pod, port: str = PORT, **env: str) -> Container:
        """A container with a GPU and the program of tests/fakes/gpu.py, not started yet: see `ask`.

        Each in one pod has a port of its own.
        """
        return pod.container(
            "app",
            HOST_IMAGE,
            ["/cuda/gpu_program-entry", "serve", port],
            mounts=[
                USR,
                Mount(self.cuda.folder, "/cuda"),
                # An answer that was given is taken off its list. Nothing that is mapped lies there.
                Mount(self.cuda.folder, "/world", readonly=False),
            ],
            env={"CUDA_LIBRARY": "/cuda/libcuda.so.1", gpu.WORLD: "/world", **env},
            devices=[device(self.node)],
            attempt=next(ATTEMPTS),
        )

    def cuda_pids(self, container: Container) -> list[int]:
        """The server and its engine process."""
        init = init_pid(self, container.id)
        [engine] = children(init, "multiprocessing.spawn")
        return [init, engine]

    def states(self, container: Container) -> list[str]:
        """What the driver has of the two."""
        return [self.cuda.state(pid) for pid in self.cuda_pids(container)]

    def ask(self, container: Container) -> Told:
        """What both say together, once their CUDA calls go through."""
        before = container.log().count("token ")
        os.kill(init_pid(self, container.id), signal.SIGUSR1)
        wait_until(lambda: container.log().count("token ") > before, "an answer of the worker")
        words = container.log().rpartition("token ")[2].split()
        return Told(words[0], int(words[2]))

    def checkpointing(self, container: Container, name: str) -> Future[Any]:
        """`thaw checkpoint` under way."""
        words = ("checkpoint", container.id, name, "--namespace", CRI_NAMESPACE)
        return POOL.submit(self.thaw, *words, check=False)


POOL = ThreadPoolExecutor(2)


@contextmanager
def running(lane: GpuLane) -> Iterator[GpuLane]:
    """It, for a module's tests: started, and taken down at the end of the block.

    Fails if they leave something.
    """
    try:
        lane.start()
        lane.import_images(layers=False, ctr=False)
        before = lane.holdings()
        yield lane
        lane.clear()
        forget_snapshots(lane, set())
        assert not lane.leaks(before)
    finally:
        lane.take_down()


def device(node: Path) -> api.Device:
    """A GPU for a container, under the name that its node has."""
    return api.Device(host_path=str(node), container_path=f"/dev/{node.name}", permissions="rw")


def ask(container: Container, *words: str, port: str = PORT) -> str:
    """What the program in a container answers."""
    done = container.exec(["/cuda/gpu_program-entry", "ask", port, *words])
    assert done.exit_code == 0, done
    return done.stdout.strip().removeprefix("ok").strip()


@contextmanager
def removed(container: Container) -> Iterator[Container]:
    """A container that is removed at the end of the block, running or not."""
    try:
        yield container
    finally:
        container.remove()


def booted(container: Container) -> Container:
    container.wait_for_log("booted")
    return container


def changes(lane: GpuLane) -> list[tuple[str, set[int]]]:
    """What was done to whom, the same to several as one."""
    done: list[tuple[str, set[int]]] = []
    for words in lane.cuda.asked():
        call, pid = words.split()
        if not done or done[-1][0] != call:
            done.append((call, set()))
        done[-1][1].add(int(pid))
    return done


@contextmanager
def moved(path: Path) -> Iterator[None]:
    away = path.with_suffix(".away")
    path.rename(away)
    try:
        yield
    finally:
        away.rename(path)
