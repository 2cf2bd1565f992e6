"""Files into regions by cuFile: what comes is what was there, or the reason why it does not."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes.cuda import FakeCuda
from fakes.cufile import FakeCufile
from fakes.regions import (
    MIB,
    Machine,
    Store,
    close,
    content,
    pattern,
)
from fakes.settled import eventually

from shim.gpu.memory import cufile as module
from shim.gpu.memory.copyin import Source
from shim.gpu.memory.cufile import Direct, NotDirect, Storage
from shim.gpu.memory.device import GRANULARITY, Region

MARKS = ["x" * 70 + "." * 30 + "1.x.1", "." * 32, "1", "x" * 130]
WHOLE = pattern("x" * 80, 4)
NVIDIA_FS = "nvidia-fs"
WORLD = (NVIDIA_FS, "kinds", "insists", "shorter", "flipped")


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As most kernels have it."""
    made = tmp_path / "modules"
    made.touch()
    monkeypatch.setattr(module, "MODULES", str(made))
    return made


@pytest.fixture
def fake(gpus: FakeCuda) -> Iterator[FakeCufile]:
    """With GPUDirect Storage. What was opened and made known is to be closed and dropped."""
    gpus.trace()
    yield (made := FakeCufile(gpus))
    assert gpus.count("cuFileDriverOpen") <= 1 + gpus.count("cuFileDriverClose_v2")
    assert not made.is_open
    for name in WORLD:
        (gpus.folder / name).unlink(missing_ok=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def filled(
    store: Store,
    fake: FakeCufile,
    regions: Sequence[Region],
    *,
    compatible: bool = True,
    threads: int = 0,
) -> None:
    """Raises NotDirect."""
    sources = store.open()
    options = {"compatible": compatible, "library": fake.library}
    direct = Direct(store.extents, sources, threads=threads, **options)  # type: ignore[arg-type]
    try:
        direct.prepare()
        direct.fill(regions)
    finally:
        direct.close()
        direct.close()
        close(sources)


@pytest.mark.parametrize("compatible", [True, False])
@pytest.mark.parametrize("threads", [1, 5])
def test_all_of_it(
    machine: Machine, fake: FakeCufile, store: Store, compatible: bool, threads: int
) -> None:
    """Onto several GPUs; nothing is copied from here."""
    before = [pattern(marks, seed) for seed, marks in enumerate(MARKS)]
    store.save([machine.with_data(data, number % 3) for number, data in enumerate(before)])
    if not compatible:
        fake.is_so(NVIDIA_FS)
    back = [machine.region(len(data), (number + 1) % 3) for number, data in enumerate(before)]
    filled(store, fake, back, compatible=compatible, threads=threads)
    assert [content(region) == data for region, data in zip(back, before, strict=True)] == [
        True
    ] * len(before)
    assert machine.cuda.count("cuMemcpyHtoDAsync_v2") == 0
    known = len(store.paths)
    calls = ("cuFileHandleRegister", "cuFileHandleDeregister")
    assert [machine.cuda.count(call) for call in calls] == [known, known]


def test_neighbours_are_read_together(machine: Machine, fake: FakeCufile, tmp_path: Path) -> None:
    """As far as a file goes, 16 MiB at most."""
    data = pattern("x" * 400, 2)
    store = Store(tmp_path, 32 * MIB)
    store.save([machine.with_data(data)])
    back = machine.region(len(data))
    filled(store, fake, [back])
    assert content(back) == data
    assert machine.cuda.count("cuFileRead") == 2


def test_reads_that_end_early(machine: Machine, fake: FakeCufile, store: Store) -> None:
    store.save([machine.with_data(WHOLE)])
    fake.is_so("shorter", str(700 << 10))
    back = machine.region(len(WHOLE))
    filled(store, fake, [back])
    assert content(back) == WHOLE


def test_a_flipped_byte(machine: Machine, fake: FakeCufile, store: Store) -> None:
    """In a file."""
    store.save([machine.with_data(WHOLE)])
    with open(store.paths[0], "r+b") as file:
        file.seek(2 * MIB + 7)
        file.write(bytes([WHOLE[2 * MIB + 7] ^ 4]))
    with pytest.raises(NotDirect, match=r"gpu-1\.img\.0000 at 0 has another checksum") as caught:
        filled(store, fake, [machine.region(len(WHOLE))])
    assert caught.value.begun


def test_a_byte_that_flips_on_the_way(machine: Machine, fake: FakeCufile, store: Store) -> None:
    store.save([machine.with_data(WHOLE)])
    fake.is_so("flipped")
    with pytest.raises(NotDirect, match="has another checksum"):
        filled(store, fake, [machine.region(len(WHOLE))])


def test_a_file_that_was_cut_off(machine: Machine, fake: FakeCufile, store: Store) -> None:
    store.save([machine.with_data(WHOLE)])
    fake.is_so(NVIDIA_FS)
    sources = store.open()
    os.truncate(store.paths[1], MIB)
    direct = Direct(store.extents, sources, compatible=False, library=fake.library, threads=1)
    with pytest.raises(NotDirect, match=r"0001 at \d+ is cut off"):
        direct.fill([machine.region(len(WHOLE))])
    direct.close()
    close(sources)


def test_extents_that_lie_elsewhere(machine: Machine, fake: FakeCufile, store: Store) -> None:
    """Nothing is read."""
    store.save([machine.with_data(WHOLE)])
    with pytest.raises(NotDirect, match="Invalid argument") as caught:
        filled(store, fake, [machine.region(GRANULARITY)])
    assert not caught.value.begun
    assert machine.cuda.count("cuFileRead") == 0


def test_extents_beyond_their_files(machine: Machine, fake: FakeCufile, store: Store) -> None:
    """No file is even made known."""
    store.save([machine.with_data(WHOLE)])
    sources = [source._replace(size=MIB) for source in store.open()]
    direct = Direct(store.extents, sources, compatible=True, library=fake.library)
    with pytest.raises(NotDirect, match="Invalid argument") as caught:
        direct.fill([machine.region(len(WHOLE))])
    assert not caught.value.begun
    assert machine.cuda.count("cuFileHandleRegister") == 0
    direct.close()
    close(sources)


CALLS = [
    ("cuFileSetParameterBool", [5022], "cuFileSetParameterBool: INVALID_VALUE (5022)"),
    ("cuFileDriverOpen", [5004], "cuFileDriverOpen: DRIVER_VERSION_MISMATCH (5004)"),
    ("cuFileDriverGetProperties", [5002], "cuFileDriverGetProperties: DRIVER_INVALID_PROPS (5002)"),
    ("cuFileHandleRegister", [-1, 5008], "a file: cuFileHandleRegister: IO_NOT_SUPPORTED (5008)"),
    ("cuFileRead", [5011], "cuFileRead: CUDA_DRIVER_ERROR (5011)"),
    ("cuFileRead", [6000], "cuFileRead: error (6000)"),
    ("cuFileRead", [errno.EIO], "Input/output error"),
    ("cuFileRead", [0], "is cut off"),
]


@pytest.mark.parametrize(("call", "results", "words"), CALLS)
def test_cufile_refuses(
    machine: Machine, fake: FakeCufile, store: Store, call: str, results: list[int], words: str
) -> None:
    store.save([machine.with_data(WHOLE)])
    fake.is_so(NVIDIA_FS)
    fake.answer(call, *results)
    with pytest.raises(NotDirect) as caught:
        filled(store, fake, [machine.region(len(WHOLE))], compatible=False)
    assert words in str(caught.value)
    assert caught.value.begun == (call == "cuFileRead")


@pytest.mark.parametrize(
    "call",
    ["cuCtxSetCurrent", "cuModuleLoadData", "cuModuleGetFunction", "cuStreamCreate",
     "cuMemAlloc_v2", "cuLaunchKernel", "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize"],
)  # fmt: skip
def test_the_driver_refuses(machine: Machine, fake: FakeCufile, store: Store, call: str) -> None:
    store.save([machine.with_data(WHOLE)])
    back = machine.region(len(WHOLE))
    machine.cuda.answer(call, 801, always=True)
    machine.refused = call
    with pytest.raises(NotDirect, match=f"{call.removesuffix('_v2')}: CUDA_ERROR_NOT_SUPPORTED"):
        filled(store, fake, [back])
    machine.cuda.reset()


@pytest.mark.parametrize(
    ("world", "words"),
    [
        ({}, "cuFileDriverOpen: DRIVER_NOT_INITIALIZED (5001)"),
        ({NVIDIA_FS: "", "insists": ""}, "it keeps to its compatibility mode"),
        ({NVIDIA_FS: "", "kinds": "0"}, "nvidia-fs knows none of this machine's storage"),
    ],
)
def test_there_is_no_gpudirect(
    machine: Machine, fake: FakeCufile, store: Store, world: dict[str, str], words: str
) -> None:
    """Then its compatibility mode is not used unless that is asked for."""
    store.save([machine.with_data(WHOLE)])
    for name, text in world.items():
        fake.is_so(name, text)
    with pytest.raises(NotDirect) as caught:
        filled(store, fake, [machine.region(len(WHOLE))], compatible=False)
    assert str(caught.value) == words
    assert machine.cuda.count("cuFileRead") == 0


def test_a_driver_that_is_there_and_does_not_say_so(
    machine: Machine, fake: FakeCufile, store: Store
) -> None:
    store.save([machine.with_data(WHOLE)])
    fake.answer("cuFileDriverOpen", 0)
    with pytest.raises(NotDirect, match="there is no nvidia-fs"):
        filled(store, fake, [machine.region(len(WHOLE))], compatible=False)


def test_a_kernel_without_modules(
    machine: Machine, fake: FakeCufile, store: Store, modules: Path
) -> None:
    """The library would look for them for ever: it is not loaded."""
    store.save([machine.with_data(WHOLE)])
    modules.unlink()
    with pytest.raises(NotDirect, match=f"there is no {modules}"):
        filled(store, fake, [machine.region(len(WHOLE))])
    assert machine.cuda.count("cuFileDriverOpen") == 0


def test_no_library(machine: Machine, store: Store) -> None:
    store.save([machine.with_data(WHOLE)])
    for library, words in [
        ("/nowhere/libcufile.so.0", "/nowhere/libcufile.so.0: cannot open shared object file"),
        (FakeCufile(machine.cuda, without="cuFileRead").library, "too old: it lacks cuFileRead"),
    ]:
        sources = store.open()
        direct = Direct(store.extents, sources, compatible=True, library=library)
        with pytest.raises(NotDirect, match=words):
            direct.fill([machine.region(len(WHOLE))])
        direct.close()
        close(sources)


@pytest.mark.parametrize("early", [True, False])
def test_it_is_cancelled(machine: Machine, fake: FakeCufile, store: Store, early: bool) -> None:
    store.save([machine.with_data(WHOLE)])
    sources = store.open()
    direct = Direct(store.extents, sources, compatible=True, library=fake.library)
    region = machine.region(len(WHOLE))
    said: list[str] = []

    def fill() -> None:
        try:
            direct.fill([region])
        except NotDirect as error:
            said.append(str(error))

    filling = threading.Thread(target=fill)
    with ExitStack() as held:
        held.enter_context(fake.held("cuFileRead"))
        if early:
            direct.cancel()
        filling.start()
        if not early:
            eventually(lambda: machine.cuda.count("cuFileRead") > 0)
            direct.cancel()
    filling.join()
    direct.close()
    close(sources)
    assert said == ["Operation canceled"]


@pytest.fixture
def sources(tmp_path: Path) -> Iterator[list[Source]]:
    """Two files: the first is in the page cache, of the second there is nothing yet."""
    sizes = [MIB, 3 * MIB]
    (tmp_path / "warm").write_bytes(b"x" * MIB)
    (tmp_path / "cold").touch()
    os.truncate(tmp_path / "cold", 3 * MIB)
    made = [
        Source(name, os.open(tmp_path / name, os.O_RDONLY), size)
        for name, size in zip(("warm", "cold"), sizes, strict=True)
    ]
    yield made
    close(made)


def test_when_it_is_tried(
    sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself only for what has to come from disks, with the driver that makes it worth it."""
    there = tmp_path / "version"
    monkeypatch.setattr(module, "NVIDIA_FS", str(there))
    extents = bytes(32)

    def tried(how: str, files: list[Source]) -> bool:
        made = Storage(how).direct(extents, files)
        if made is not None:
            made.close()
        return made is not None

    assert [tried(how, sources) for how in ("ring", "auto", "cufile")] == [False, False, True]
    there.write_text("version: 2.26")
    assert [tried(how, sources) for how in ("ring", "auto", "cufile")] == [False, True, True]
    warm = sources[:1]
    assert [tried(how, warm) for how in ("ring", "auto", "cufile")] == [False, False, True]
    assert Storage("cufile").direct(b"", []) is None
