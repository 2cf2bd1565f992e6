"""What a container needs of this machine to use its GPU: device nodes, libraries, a PyTorch.

Without a GPU (`library` is None) the workers run on the processor: that shows nothing but that
these tests work. Nothing of NVIDIA's container tools is needed: the nodes come by CDI, whose file
is written here, and the libraries, as all else, from the machine's own folders.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bed.pod import Mount
from gpu.subject import TESTS

LIBRARY = "libcuda.so.1"
KIND = "thaw.local/gpu"
_SPECIFICATION = Path("/var/run/cdi/thaw-test.json")  # where containerd looks by default
_NODES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
_PLACES = ("/usr/local/nvidia/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TELL = "import json, sys, torch; print(json.dumps([sys.prefix, sys.base_prefix]))"


class Machine(NamedTuple):
    """A machine with a GPU and a Python that has PyTorch."""

    python: str
    folders: tuple[Path, ...]  # that it lies in
    library: Path | None  # the driver's libcuda.so.1

    @property
    def mounts(self) -> list[Mount]:
        """The folders, each at its own path; read-only."""
        drivers = [self.library.parent] if self.library is not None else []
        wanted = outermost([Path("/usr"), *self.folders, *drivers])
        points = mount_points(Path("/proc/self/mountinfo").read_text())
        real = outermost(folder.resolve() for folder in wanted)
        parts = [part for folder in real for part in bindable(folder, points)]
        links = [folder for folder in wanted if folder.resolve() != folder]
        own = [Mount(path, str(path)) for path in parts]
        return own + [Mount(folder.resolve(), str(folder)) for folder in links]

    @property
    def environment(self) -> dict[str, str]:
        """What a process that uses the GPU needs; the library's folder may be nobody's default."""
        return {
            "HOME": "/root",
            "PATH": f"{Path(self.python).parent}:{_PATH}",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            **self.libraries,
        }

    def beside(self, more: Mapping[str, str]) -> dict[str, str]:
        """That of a program of these tests which runs beside the pods."""
        return {**os.environ, **self.environment, "PYTHONPATH": str(TESTS), **more}

    @property
    def libraries(self) -> dict[str, str]:
        """Where the driver's libraries are found, for whoever loads them."""
        if self.library is None:
            return {}
        folder = str(self.library.parent)
        # Triton asks ldconfig otherwise, whose cache a container has only if a hook makes one.
        return {"LD_LIBRARY_PATH": folder, "TRITON_LIBCUDA_PATH": folder}


def this_machine(python: str, device: str = "cuda") -> Machine:
    """Raises RuntimeError, saying what is missing. Device cpu: a driver is not looked for."""
    program = subprocess.run(["which", python], capture_output=True, text=True, check=False)
    path = program.stdout.strip()
    asked = subprocess.run(
        [path or python, "-c", _TELL], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        raise RuntimeError(f"{python} has no PyTorch: {asked.stderr.strip()[-200:]}")
    folders = tuple(Path(folder) for folder in json.loads(asked.stdout))
    return Machine(path, folders, _library() if device == "cuda" else None)


def _library() -> Path:
    listed = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    known = re.findall(rf"{re.escape(LIBRARY)} \(.*x86-64.*\) => (\S+)", listed)
    folders = [*os.environ.get("LD_LIBRARY_PATH", "").split(":"), *_PLACES]
    for path in (*map(Path, known), *(Path(folder) / LIBRARY for folder in folders if folder)):
        if path.exists():
            return path
    raise RuntimeError(f"no {LIBRARY}: is NVIDIA's driver installed?")


def annotations_of(device: str) -> dict[str, str]:
    """What a container says by CDI to have it: `all`, or one GPU by its minor number."""
    return {"cdi.k8s.io/thaw-test": f"{KIND}={device}"}


@contextmanager
def described(folder: Path = Path("/dev")) -> Iterator[None]:
    """Tell containerd of the GPUs by CDI, for the block; it looks whenever it makes a container."""
    gpus = {path.name.removeprefix("nvidia"): path for path in folder.glob("nvidia*")}
    gpus = {number: gpus[number] for number in sorted(gpus) if number.isdigit()}
    common = [folder / name for name in _NODES if (folder / name).exists()]
    devices = {"all": list(gpus.values()), **{number: [path] for number, path in gpus.items()}}
    about = {
        "cdiVersion": "0.5.0",
        "kind": KIND,
        "devices": [_device(name, [*common, *paths]) for name, paths in devices.items()],
    }
    _SPECIFICATION.parent.mkdir(parents=True, exist_ok=True)
    _SPECIFICATION.write_text(json.dumps(about))
    try:
        yield
    finally:
        _SPECIFICATION.unlink(missing_ok=True)


def _device(name: str, paths: Iterable[Path]) -> dict[str, Any]:
    nodes = [{"path": str(path)} for path in sorted(paths)]
    return {"name": name, "containerEdits": {"deviceNodes": nodes}}


def mount_points(mountinfo: str) -> set[Path]:
    """Where file systems are mounted; see proc_pid_mountinfo(5)."""
    return {
        Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), line.split()[4]))
        for line in mountinfo.splitlines()
    }


def bindable(path: Path, points: set[Path]) -> list[Path]:
    """A folder as parts in which nothing else is mounted: CRIU cannot dump a mount below a bind."""
    if not any(path in point.parents for point in points):
        return [path]
    children = sorted(child for child in path.iterdir() if not child.is_symlink())
    return [part for child in children for part in bindable(child, points)]


def outermost(folders: Iterable[Path]) -> list[Path]:
    """Without those that lie in others."""
    found: list[Path] = []
    for folder in sorted(set(folders)):
        if not any(other == folder or other in folder.parents for other in found):
            found.append(folder)
    return found
