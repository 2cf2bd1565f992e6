"""C code by itself and under the compiler's sanitizers: filler, driver, and readers of images."""

from __future__ import annotations

import os
import subprocess
from itertools import chain
from pathlib import Path

import pytest
from fakes.cuda import FakeCuda

TOP = Path(__file__).parents[3]
NATIVE = TOP / "native"
PROGRAMS = TOP / "tests" / "native"
WARNINGS = "-Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wundef -Werror"
# What native/fill.h is about.
PARTS = [
    "fill",
    "batch",
    "blob",
    "filler",
    "placement",
    "pool",
    "queue",
    "reader",
    "task",
    "workers",
]
GPUS = ["cuda", "device", "lane", "mapped", "pinned", "delivery"]
KINDS = {
    "plain": ["-O2"],
    "address": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-fsanitize=thread"],
}
FILLER = ["checksum", *GPUS, *PARTS]
# Which parts of native/ each program of tests/native is made of.
SAVER = ["save", "memory", "pieces", "schedule"]
PROGRAM_PARTS = {
    "parts": FILLER,
    "stress": FILLER,
    "driver": ["cuda"],
    "copies": [*FILLER, *SAVER, "scan"],
    "damaged": ["images"],
}
SECONDS = 2  # of each; who looks for a rare race has time for more


def works(options: list[str], folder: Path) -> bool:
    """Whether the compiler can make programs with these options, and this machine can run them."""
    source, program = folder / "empty.c", folder / "empty"
    source.write_text("int main(void) { return 0; }\n")
    made = subprocess.run(
        ["gcc", *options, "-o", program, source], capture_output=True, check=False
    )
    return made.returncode == 0 and run(program).returncode == 0


def run(program: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Without a random layout: ThreadSanitizer before GCC 14 finds no room in some of them."""
    command = ["setarch", "--addr-no-randomize", str(program), *args]
    environment = {
        **os.environ,
        "TSAN_OPTIONS": "halt_on_error=1",
        "ASAN_OPTIONS": "detect_leaks=1",
    }
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=100
    )


@pytest.fixture(scope="module", params=KINDS)
def programs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """All programs, of one kind; what they have in common is compiled once."""
    folder, chosen = tmp_path_factory.mktemp(request.param), KINDS[request.param]
    if not works(chosen, folder):
        pytest.skip(f"gcc has no {request.param} sanitizer here")
    command = ["gcc", "-std=gnu17", "-g", *WARNINGS.split(), *chosen, f"-I{NATIVE}"]
    sources = [
        *(NATIVE / f"{part}.c" for part in sorted({*chain(*PROGRAM_PARTS.values())})),
        *(PROGRAMS / f"{name}.c" for name in PROGRAM_PARTS),
    ]
    compiled = {source.stem: folder / f"{source.stem}.o" for source in sources}
    compilers = [
        subprocess.Popen([*command, "-c", "-o", compiled[source.stem], source])
        for source in sources
    ]
    assert [compiler.wait() for compiler in compilers] == [0] * len(sources)
    for name, parts in PROGRAM_PARTS.items():
        objects = [compiled[stem] for stem in (name, *parts)]
        subprocess.run([*command, "-o", folder / name, *objects, "-lpthread"], check=True)
    return {name: folder / name for name in PROGRAM_PARTS}


def test_parts(programs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "nodes").mkdir()
    ran = run(programs["parts"], str(tmp_path / "nodes"))
    assert (ran.returncode, ran.stdout) == (0, "fine\n"), ran.stderr


def test_stress(programs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    ran = run(programs["stress"], str(tmp_path / "files"), str(SECONDS), "1")
    assert ran.returncode == 0, ran.stderr
    assert sum(int(line.split()[0]) for line in ran.stdout.splitlines()) > 0


def test_driver(programs: dict[str, Path], tmp_path: Path) -> None:
    cuda = FakeCuda(tmp_path / "cuda", version=13040, storage=True)
    for pid in range(1, 5):
        cuda.add(pid)
    ran = run(programs["driver"], cuda.library, str(cuda.folder))
    assert (ran.returncode, ran.stdout) == (0, "fine\n"), ran.stderr
    assert [cuda.state(pid) for pid in range(1, 5)] == ["running"] * 4
    assert len(cuda.asked()) > 1000


def test_copies(programs: dict[str, Path], tmp_path: Path) -> None:
    cuda = FakeCuda(tmp_path / "cuda")
    ran = run(programs["copies"], cuda.library, str(SECONDS), "1")
    assert ran.returncode == 0, ran.stderr
    assert sum(int(line.split()[0]) for line in ran.stdout.splitlines()) > 0


def test_images_that_are_damaged(programs: dict[str, Path]) -> None:
    ran = run(programs["damaged"], str(SECONDS))
    assert ran.returncode == 0, ran.stderr
    tried, taken = map(int, ran.stdout.split())
    assert 0 < taken < tried


@pytest.mark.parametrize("program", ["layout", "layout_memory"])
def test_the_layout_of_what_the_driver_is_told(program: str) -> None:
    header = Path(os.environ.get("THAW_CUDA_HEADER", "/usr/local/cuda/include/cuda.h"))
    if not header.exists():
        pytest.skip(f"no {header}; THAW_CUDA_HEADER may name one")
    options = ["-std=gnu17", *WARNINGS.split(), "-fsyntax-only", f"-isystem{header.parent}"]
    subprocess.run(["gcc", *options, f"-I{NATIVE}", PROGRAMS / f"{program}.c"], check=True)
