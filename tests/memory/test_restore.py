"""The zoo is dumped once, and comes back the same under every setting of the engine."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from bed.fetch import criu as fetched_criu
from bench import thaw
from bench.bare import Criu
from bench.disk import cool, files_below, warm
from memory.compare import Process, differences, picture
from memory.running import Zoo, running

from shim.snapshot import pieces
from shim.snapshot.index import FOLDER, Index
from shim.snapshot.indexing import make
from shim.snapshot.pieces import Pieces

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="CRIU needs root")
_MIB = 1 << 20
CHOSEN, CACHED, DIRECT = range(3)  # struct thaw_fill_options' source
CACHE = {"warm": warm, "cold": cool}


class Dumped(NamedTuple):
    """A zoo that was dumped, and what it was like."""

    zoo: Zoo
    images: Path
    before: Mapping[int, Process]
    files: Mapping[Path, bytes]


@pytest.fixture(scope="module")
def criu() -> Criu:
    return Criu(fetched_criu())


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory, criu: Criu) -> Iterator[Dumped]:
    folder = tmp_path_factory.mktemp("zoo")
    images = folder / "images"
    images.mkdir()
    with running(folder) as zoo:
        zoo.go_on()
        assert zoo.verify() == []
        before = picture(zoo.pid)
        criu.dump(zoo.pid, images, ["--link-remap", "--ghost-limit", "1024G"])
        zoo.end()
        yield Dumped(zoo, images, before, zoo.files())
    shutil.rmtree(images)


@pytest.fixture(scope="module")
def index(dumped: Dumped) -> Index:
    index = make(dumped.images, dumped.images / FOLDER)
    assert index.reason == ""
    return index


class Cut(NamedTuple):
    """The same images as a snapshot has them: pages in pieces, on what could be two disks."""

    images: Path
    pages: list[Path]


@pytest.fixture(scope="module")
def cut(dumped: Dumped) -> Iterator[Cut]:
    folder = dumped.images.parent
    made = Cut(folder / "cut", [folder / "one", folder / "two"])
    shutil.copytree(dumped.images, made.images, ignore=shutil.ignore_patterns(FOLDER))
    for each in made.pages:
        each.mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pieces, "PIECE", 8 * _MIB)
        Pieces(made.pages).take(made.images)
        assert make(made.images, made.images / FOLDER, pages=made.pages).reason == ""
    yield made
    for each in (made.images, *made.pages):
        shutil.rmtree(each)


@pytest.fixture
def back(dumped: Dumped) -> Iterator[Zoo]:
    """The zoo, to be restored by the test; its files are again as they were."""
    for path, content in dumped.files.items():
        path.write_bytes(content)
    yield dumped.zoo
    dumped.zoo.end()


def check_it_is_the_same(dumped: Dumped) -> None:
    assert differences(dumped.before, picture(dumped.zoo.pid)) == []
    assert dumped.zoo.verify() == []
    assert dumped.zoo.go_on() == "went on 2 well"
    assert dumped.zoo.verify() == []


def test_stock_criu(dumped: Dumped, back: Zoo, criu: Criu, tmp_path: Path) -> None:
    """What the others are measured by: nothing differs that rightfully may."""
    criu.restore(dumped.images, tmp_path)
    check_it_is_the_same(dumped)


def test_stock_criu_out_of_pieces(
    dumped: Dumped, cut: Cut, back: Zoo, criu: Criu, tmp_path: Path
) -> None:
    """They are what it would have written, put together again."""
    Pieces(cut.pages).assemble(cut.images, tmp_path / "whole")
    for path in dumped.images.glob("pages-*.img"):
        whole = tmp_path / "whole" / path.name
        assert (
            filecmp.cmp(path, whole, shallow=False) if whole.exists() else not path.stat().st_size
        )
    criu.restore(tmp_path / "whole", tmp_path)
    check_it_is_the_same(dumped)


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(
    ("threads", "mib", "cache", "source"),
    [
        (1, 0, "cold", CHOSEN),
        (2, 8, "warm", CHOSEN),
        (2, 64, "warm", DIRECT),
        (2, 64, "cold", CACHED),
    ],
)
def test_every_way_to_fill(
    dumped: Dumped,
    back: Zoo,
    criu: Criu,
    tmp_path: Path,
    threads: int,
    mib: int,
    cache: str,
    source: int,
) -> None:
    CACHE[cache](files_below([dumped.images]))
    thaw.restore(criu, dumped.images, tmp_path, threads=threads, budget=mib * _MIB, source=source)
    check_it_is_the_same(dumped)


@pytest.mark.parametrize(("mib", "cache"), [(4096, "warm"), (16, "cold")])
def test_out_of_pieces(
    dumped: Dumped, cut: Cut, back: Zoo, criu: Criu, tmp_path: Path, mib: int, cache: str
) -> None:
    CACHE[cache](files_below([cut.images, *cut.pages]))
    thaw.restore(criu, cut.images, tmp_path, threads=5, budget=mib * _MIB, pages=cut.pages)
    check_it_is_the_same(dumped)


def test_most_of_it_is_filled(index: Index, dumped: Dumped) -> None:
    """What stays with CRIU is what must; a change here is a change of what is bulk."""
    assert index.sizes["extents"] > 200 * _MIB
    assert index.sizes["zero"] > 20 * _MIB
    assert index.tasks == sorted(dumped.before)
