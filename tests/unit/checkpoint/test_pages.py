"""Pages that we write are those that CRIU writes; what we cannot do is left to it."""

from __future__ import annotations

import errno
import filecmp
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bench.bare import tree
from fakes import sleeper
from fakes.images import BASE, Images, all_pages, filled, noise, vma
from fakes.settled import asleep, eventually

from shim.checkpoint import pages
from shim.checkpoint.pages import Pages, Parallel, Plain
from shim.criu import NETWORK_LOCK, Steering
from shim.errors import CheckpointFailed
from shim.processes import processes_below
from shim.snapshot import indexing, pieces
from shim.snapshot.images import PAGE
from shim.snapshot.index import Index
from shim.snapshot.layout import COMPARED, NO_TASK
from shim.snapshot.pieces import Pieces

CRIU = Path(os.environ.get("THAW_CACHE", "/var/cache/thaw")) / "criu/criu"
ROOT = os.geteuid() == 0
pytestmark = pytest.mark.skipif(not CRIU.exists() or not ROOT, reason="dumps processes with CRIU")

Action = Callable[[int], None]


class Worker:
    """A process that sleeps, and its dumps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = folder / "state"
        self._state.mkdir()
        self._process = subprocess.Popen(
            # Not this environment's interpreter: CRIU need not find its files again.
            [sys.executable, "-IS", sleeper.__file__, str(folder / "file")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={"GLIBC_TUNABLES": "glibc.pthread.rseq=0"},  # the kernel writes there
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        self.pid = self._process.pid
        # Until then its stack changes: it would not be in one dump as it is in the next.
        eventually(lambda: [asleep(pid) for pid in tree(self.pid)] == [True, True])

    def dump(self, images: Path, actions: dict[str, Action]) -> None:
        """Dump it, and let it go on."""
        steering = Steering(self._state, [NETWORK_LOCK, "ghost-limit 1G"], actions)
        argv = [str(CRIU), "dump", "-t", str(self.pid), "-D", str(images), "-W", str(self.folder)]
        argv += ["-R", "-v4", "-o", "log", "--config", str(self._state / "criu.conf")]
        with steering:
            done = subprocess.run(argv, capture_output=True, check=False)
        if steering.failure:
            raise steering.failure
        assert done.returncode == 0, (self.folder / "log").read_text()[-2000:]

    def save(
        self, parallel: Parallel, actions: dict[str, Action] | None = None, *, finish: bool = True
    ) -> Parallel:
        """Dump it with pages that we write."""
        ours: dict[str, Action] = {
            "pre-dump": lambda _: parallel.divert(),
            "post-dump": lambda _: parallel.save(),
        }
        with parallel:
            self.dump(parallel.images, {**ours, **(actions or {})})
            if finish:
                parallel.finish()
        return parallel

    def end(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    made = Worker(tmp_path_factory.mktemp("worker"))
    yield made
    made.end()


@pytest.fixture
def parallel(worker: Worker, tmp_path: Path) -> Parallel:
    """What is about to save the worker's memory, in an empty folder."""
    images = tmp_path / "images"
    images.mkdir()
    return Parallel(images, worker.pid, 1 << 30)


@pytest.fixture(scope="module")
def plain(worker: Worker) -> Path:
    """What CRIU makes, and its index."""
    images = worker.folder / "plain"
    images.mkdir()
    worker.dump(images, {})
    Plain(images).index(images / "index")
    return images


def assert_same(images: Path, plain: Path) -> None:
    """All pages are equal, and no link is left."""
    assert links(images) == []
    names = sorted(path.name for path in plain.glob("pages-*.img"))
    assert sorted(path.name for path in images.glob("pages-*.img")) == names
    assert len(names) == 5
    for name in names:
        assert filecmp.cmp(images / name, plain / name, shallow=False), name


def assert_same_index(index: Path, plain: Path) -> None:
    found = filecmp.dircmp(index, plain / "index")
    assert found.left_list == found.right_list != []
    assert found.common_files == found.left_list
    # index.json has checksums of CRIU's other images, which tell of times.
    ours = [name for name in found.left_list if name not in ("index.json", "extents")]
    assert filecmp.cmpfiles(index, plain / "index", ours, shallow=False)[0] == ours


PIECE = 3 << 20


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where pieces go, small ones."""
    monkeypatch.setattr(pieces, "PIECE", PIECE)
    return [tmp_path / "one", tmp_path / "two"]


def assert_same_in_pieces(images: Path, folders: list[Path], plain: Path) -> None:
    """They are those of CRIU, of the right size, and by turns in the folders."""
    assert list(images.glob("pages-*")) == []
    found = Pieces(folders).found()
    assert len(found) > 5
    for path in plain.glob("pages-*.img"):
        parts = [found.pop(name) for name in sorted(found) if name.startswith(f"{path.name}.")]
        assert all(part.stat().st_size == PIECE for part in parts[:-1])
        assert b"".join(part.read_bytes() for part in parts) == path.read_bytes()
        assert len({part.parent for part in parts}) == min(2, len(parts))
    assert found == {}


def assert_good_index(way: Pages, images: Path, folders: list[Path], plain: Path) -> Index:
    """What is filled, and what CRIU would read, are all that there is, as without pieces."""
    index = images.parent / "index"
    way.index(index)
    made = Index.open(index, images, folders)
    made.check_files()
    assert (made.reason, made.disks) == ("", [path.parent for path in made.paths])
    assert set(made.disks) == set(folders)
    wanted = Index.open(plain / "index", plain)
    assert made.sizes == wanted.sizes
    assert sorted(filled(made)) == sorted(filled(wanted))
    made.link(images.parent / "links")
    wanted.link(images.parent / "wanted")
    assert all_pages(images.parent / "links") == all_pages(images.parent / "wanted")
    return made


@pytest.mark.parametrize("slack", [64, -2])
def test_in_pieces(
    worker: Worker,
    plain: Path,
    tmp_path: Path,
    folders: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    slack: int,
) -> None:
    """Also those files that CRIU makes after all."""
    monkeypatch.setattr(pages, "_SLACK", slack)
    images = tmp_path / "images"
    images.mkdir()
    parallel = worker.save(Parallel(images, worker.pid, 1 << 30, pages=folders))
    assert_same_in_pieces(images, folders, plain)
    made = assert_good_index(parallel, images, folders, plain)
    again = indexing.make(images, tmp_path / "again", pages=folders)
    assert not filecmp.dircmp(tmp_path / "index", tmp_path / "again").diff_files
    assert again.extents == made.extents


def test_pieces_of_what_criu_has_written(
    worker: Worker, plain: Path, tmp_path: Path, folders: list[Path]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    with Plain(images, pages=folders) as way:
        worker.dump(images, {"post-dump": lambda _: way.save()})
        way.finish()
    assert_same_in_pieces(images, folders, plain)
    assert_good_index(way, images, folders, plain)


def test_pieces_without_an_index(tmp_path: Path, folders: list[Path]) -> None:
    """CRIU's images are cut all the same, whatever they are, and the index says why it is none."""
    images = Images(tmp_path / "images")
    images.version = 1
    data = noise(PIECE + PAGE)
    images.process(1, [vma(BASE, len(data))], {BASE: data})
    with Plain(images.write(), pages=folders) as way:
        way.save()
        way.finish()
    way.index(tmp_path / "index")
    assert "version 1" in Index.open(tmp_path / "index", images.folder, folders).reason
    assert [path.stat().st_size for path in Pieces(folders).found().values()] == [PIECE, PAGE]


def test_pieces_that_were_refused(
    worker: Worker, tmp_path: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = subprocess.Popen(["/bin/true"])
    nobody.wait()
    found = {**processes_below(worker.pid), worker.pid: nobody.pid}
    monkeypatch.setattr(pages, "processes_below", lambda _: found)
    images = tmp_path / "images"
    images.mkdir()
    with pytest.raises(CheckpointFailed, match=r"pages-\d+\.img\.\d{4}, \d+ bytes at"):
        worker.save(Parallel(images, worker.pid, pages=folders))
    assert Pieces(folders).found() == {}
    assert os.listdir(images) == []


def links(images: Path) -> list[str]:
    return [path.name for path in images.iterdir() if path.is_symlink()]


def test_the_same_pages_and_the_same_index(
    worker: Worker, parallel: Parallel, plain: Path, tmp_path: Path
) -> None:
    images = worker.save(parallel).images
    assert_same(images, plain)
    assert parallel.refused == ""
    parallel.index(images / "index")
    assert_same_index(images / "index", plain)
    made = Index.open(images / "index", images)
    made.check_files()
    assert made.reason == ""
    assert made.extents == Index.open(plain / "index", plain).extents
    assert made.bytes > 10 << 20
    again = indexing.make(images, tmp_path / "again")
    assert not filecmp.dircmp(images / "index", tmp_path / "again").diff_files
    assert again.extents == made.extents


def test_zeros_take_no_room(worker: Worker, parallel: Parallel) -> None:
    images = worker.save(parallel).images
    private = images / indexing.survey(images).sources[0].name
    # 1 MiB of zeros; blocks count those of the file system's own extent tree too (ext4).
    assert private.stat().st_blocks * 512 <= private.stat().st_size - (1 << 19)


def test_all_kinds_of_memory_are_in_it(plain: Path) -> None:
    """The comparison is worth something."""
    runs = indexing.survey(plain).runs
    assert any(run.task == NO_TASK for run in runs)
    assert any(run.flags & COMPARED for run in runs)


@pytest.mark.parametrize("slack", [-1, -2, -4])
def test_more_files_than_expected(
    worker: Worker, parallel: Parallel, plain: Path, monkeypatch: pytest.MonkeyPatch, slack: int
) -> None:
    """CRIU makes those that no link stood for."""
    monkeypatch.setattr(pages, "_SLACK", slack)
    images = worker.save(parallel).images
    assert_same(images, plain)
    parallel.index(images / "index")
    assert_same_index(images / "index", plain)
    made, wanted = (Index.open(f / "index", f).extents for f in (images, plain))
    assert made == wanted


def test_without_a_hook_criu_does_it(worker: Worker, parallel: Parallel, plain: Path) -> None:
    """A runtime that does not tell CRIU of our script loses nothing."""
    images = parallel.images
    with parallel:
        worker.dump(images, {})
        parallel.finish()
    assert_same(images, plain)
    parallel.index(images / "index")
    assert_same_index(images / "index", plain)


def test_images_that_we_do_not_understand(worker: Worker, parallel: Parallel, plain: Path) -> None:
    """Refused, so that the tasks run on; nothing of that dump stays, and what was there does."""
    images = parallel.images
    (images / "thaw").mkdir(parents=True)

    def spoil(_: int) -> None:
        (images / "inventory.img").write_bytes(b"other")
        parallel.save()

    with pytest.raises(CheckpointFailed, match=r"not for us .*inventory"):
        worker.save(parallel, {"post-dump": spoil})
    assert "inventory.img" in parallel.refused
    assert os.listdir(images) == ["thaw"]
    worker.dump(images, {})
    assert_same(images, plain)


def test_memory_that_we_cannot_read(
    worker: Worker, parallel: Parallel, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = subprocess.Popen(["/bin/true"])
    nobody.wait()
    found = {**processes_below(worker.pid), worker.pid: nobody.pid}
    monkeypatch.setattr(pages, "processes_below", lambda _: found)
    with pytest.raises(CheckpointFailed, match=r"pages-\d+\.img, \d+ bytes at"):
        worker.save(parallel)
    assert "pages-" in parallel.refused
    assert os.listdir(parallel.images) == []


@pytest.mark.parametrize("name", ["processes_below", "_shared_memory"])
def test_memory_that_we_cannot_find(
    worker: Worker, parallel: Parallel, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(pages, name, lambda _: {})
    with pytest.raises(CheckpointFailed, match="is not to be found"):
        worker.save(parallel)
    assert parallel.refused
    assert os.listdir(parallel.images) == []


def test_a_full_disk(worker: Worker, parallel: Parallel) -> None:
    """CRIU could do no better: that is the end, and the links go."""
    images = parallel.images
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", images], check=True)
    try:
        with pytest.raises(CheckpointFailed, match="cannot save memory") as caught:
            worker.save(parallel)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ENOSPC
        assert os.strerror(errno.ENOSPC) in caught.value.message
        assert parallel.refused == ""
        assert links(images) == []
    finally:
        subprocess.run(["umount", images], check=True)


def test_a_dump_that_fails_leaves_no_links(worker: Worker, parallel: Parallel) -> None:
    def fail(_: int) -> None:
        raise CheckpointFailed("on purpose")

    with pytest.raises(CheckpointFailed, match="on purpose"):
        worker.save(parallel, {"post-dump": fail})
    assert (parallel.images / "inventory.img").exists()
    assert links(parallel.images) == []


def test_a_folder_that_has_another_name_by_the_end(
    worker: Worker, parallel: Parallel, tmp_path: Path
) -> None:
    """A snapshot of a worker that shall end is published before CRIU is done."""

    def publish(_: int) -> None:
        parallel.save()
        parallel.finish()
        parallel.images.rename(tmp_path / "published")

    worker.save(parallel, {"post-dump": publish}, finish=False)
    assert links(tmp_path / "published") == []


def test_links_that_a_killed_dump_left_are_in_nobodys_way(tmp_path: Path) -> None:
    """CRIU opens its files through them, and the memory would be lost."""
    for way in (Plain(tmp_path), Parallel(tmp_path, os.getpid())):
        (tmp_path / "pages-1.img").symlink_to("/dev/null")
        (tmp_path / "pages-of-mine.img").symlink_to("/dev/null")
        with way:
            assert not (tmp_path / "pages-1.img").is_symlink()
            assert (tmp_path / "pages-of-mine.img").is_symlink()
        (tmp_path / "pages-of-mine.img").unlink()


def test_a_dump_that_did_not_stop_for_its_memory_is_none(tmp_path: Path) -> None:
    with Parallel(tmp_path, os.getpid()) as way:
        way.ensure_saved()
        way.divert()
        with pytest.raises(CheckpointFailed, match="did not stop for the memory"):
            way.ensure_saved()
