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
from fakes.cuda import VARIABLE, FakeCuda
from fakes.nvml import FakeNvml
from workers import PYTHON, USR, Told, children, init_pid, wait_until

SERVER = Path(__file__).parents[1] / "fakes" / "cuda_server.py"
ATTEMPTS = count()


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
            devices=[
                api.Device(
                    host_path=str(self.node), container_path="/dev/nvidia0", permissions="rw"
                )
            ],
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
