"""Names, drafts, stripes and marks; and what is left when somebody is killed in the middle."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.snapshots import CONFIG, make, write

from shim import names
from shim.config import Config
from shim.errors import (
    AlreadyExists,
    BadName,
    FailedPrecondition,
    NoSuchSnapshot,
    StoreFull,
    Unfit,
)
from shim.reference import parse
from shim.snapshot import store as module
from shim.snapshot.store import Store, Stores, held

CHECKOUT = Path(__file__).resolve().parents[3]
HEX = "a" * 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def striped(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", [tmp_path / "disk1", tmp_path / "disk2"])


def inside(folder: Path) -> list[str]:
    """All files and empty folders below it."""
    found = [path for path in folder.rglob("*") if path.is_file() or not any(path.iterdir())]
    return sorted(str(path.relative_to(folder)) for path in found)


def debris(store: Store) -> list[str]:
    """What does not belong into a store that is at rest."""
    roots = (store.folder, *store.stripes)
    hidden = [name for root in roots for name in os.listdir(root) if name.startswith(".")]
    ids = {id for root in roots for id in os.listdir(root / "snapshots")}
    return hidden + sorted(ids - set(store.ids()))


# Names


@pytest.mark.parametrize(
    "name",
    [
        *("", "auto", "a/b", "../one", "/one", f"a@sha256:{HEX}", "a:b", ".one", "-a", "A", "ö"),
        *("a b", "a\n", "a\0b", ".draft-0", "a" * 64, "a@b"),
    ],
)
def test_bad_names(store: Store, name: str) -> None:
    with pytest.raises(BadName):
        make(store, name)
    assert not store.folder.exists()


def test_good_names(store: Store) -> None:
    wanted = ["0", "a.b_c-d", "auto2", "a" * 63, "registry.io/team/one:v1.0"]
    ids = {name: make(store, name) for name in wanted}
    stores = Stores([store])
    for name, id in ids.items():
        assert stores.find(name) == (store, id)
        assert stores.open(name).config == CONFIG
    assert sorted(name for entry in store.entries() for name in entry.names) == sorted(wanted)


def test_a_digest_is_not_a_name_that_can_be_given(store: Store) -> None:
    id = make(store, f"registry.io/one@sha256:{HEX}")
    assert store.names() == {}
    store.note_digest(id, f"sha256:{HEX}")
    assert Stores([store]).find(f"other@sha256:{HEX}") == (store, id)


def test_there_is_none(store: Store) -> None:
    for _ in range(2):
        with pytest.raises(NoSuchSnapshot, match="no snapshot named two"):
            Stores([store]).open("two")
        with pytest.raises(NoSuchSnapshot):
            store.snapshot("0" * 16)
        with pytest.raises(NoSuchSnapshot):
            store.remove("../one")
        with pytest.raises(NoSuchSnapshot):
            store.untag("two")
        assert store.entries() == []
        make(store, "one")
        store.remove(store.ids()[0])


def test_an_id_is_a_name_too(store: Store) -> None:
    id = make(store, None)
    assert Stores([store]).open(id).id == id
    other = make(store, id)
    assert Stores([store]).open(id).id == other, "but a real name goes before"


def test_tagged_and_untagged(store: Store) -> None:
    one, two = make(store, "one"), make(store, "two")
    store.tag("another", one)
    assert store.names() == {"another": one, "one": one, "two": two}
    with pytest.raises(AlreadyExists, match="named two exists"):
        store.tag("two", one)
    store.tag("two", one, replace=True)
    store.untag("one")
    assert store.names() == {"another": one, "two": one}
    assert [entry.names for entry in store.entries() if entry.id == two] == [[]]
    with pytest.raises(NoSuchSnapshot):
        store.tag("three", "0" * 16)
    assert debris(store) == []


def test_a_tag_moves_by_one_rename(store: Store) -> None:
    """A reader sees one or the other, whenever it looks."""
    one, two = make(store, "name"), make(store, None)
    seen: set[str | None] = set()
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.add(names.read_id(str(store.folder / "names" / "name")))

    reader = threading.Thread(target=read)
    reader.start()
    for id in (two, one) * 20:
        store.tag("name", id, replace=True)
    over.set()
    reader.join()
    assert seen <= {one, two}


def test_two_makers_of_one_name(store: Store) -> None:
    """One wins, whoever comes first; the other's snapshot is removed."""
    first = store.draft("one")
    draft = first.__enter__()
    write(draft.path)
    winner = make(store, "one")
    with pytest.raises(AlreadyExists, match="thaw rm one"):
        first.__exit__(None, None, None)
    assert store.names() == {"one": winner}
    assert store.ids() == [winner]
    assert debris(store) == []


def test_many_makers_of_one_name(store: Store) -> None:
    """Several processes' worth of threads: exactly one snapshot and one name are there."""
    made: list[str] = []
    refused: list[BaseException] = []

    def work() -> None:
        try:
            made.append(make(store, "one"))
        except AlreadyExists as error:
            refused.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (1, 7)
    assert store.names() == {"one": made[0]}
    assert store.ids() == made
    assert debris(store) == []


def test_a_name_that_is_taken_is_said_before_anything_is_written(store: Store) -> None:
    make(store, "one")
    before = inside(store.folder)
    with pytest.raises(AlreadyExists), store.draft("one"):
        pytest.fail("it has begun")
    assert inside(store.folder) == before


def test_a_name_that_is_replaced(store: Store) -> None:
    old = make(store, "one")
    with store.draft("one", replace=True) as draft:
        write(draft.path)
        assert store.names() == {"one": old}
    assert store.names() == {"one": draft.id}
    assert sorted(store.ids()) == sorted([old, draft.id]), "the old one is there without a name"


def test_a_name_that_was_replaced_in_vain(store: Store) -> None:
    """Its maker failed after publishing: what the name stood for before, it stands for again."""
    old = make(store, "one")

    def fail() -> None:
        with store.draft("one", replace=True) as draft:
            write(draft.path)
            draft.publish()
            assert store.names() == {"one": draft.id}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert store.names() == {"one": old}
    assert store.ids() == [old]


def test_what_had_the_name_before_stays_until_its_maker_is_done(store: Store) -> None:
    """Nothing leads to it meanwhile, and yet it may have to get its name back."""
    old = make(store, "one")
    with store.draft("one", replace=True) as draft:
        write(draft.path)
        draft.publish()
        with pytest.raises(FailedPrecondition):
            store.remove(old)
    store.remove(old)


def test_what_cannot_be_undone_hides_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names cannot be written any more: the snapshot goes all the same, and the cause is said."""
    old = make(store, "one")

    def refuse(*_: object, **__: object) -> str:
        raise OSError(errno.EIO, "Input/output error")

    def fail() -> None:
        with store.draft("one", replace=True) as draft:
            write(draft.path)
            draft.publish()
            monkeypatch.setattr(store._tags, "make", refuse)
            raise KeyboardInterrupt("the first")

    with pytest.raises(KeyboardInterrupt, match="the first") as caught:
        fail()
    assert "Input/output error" in caught.value.__notes__[0]
    assert store.ids() == [old]
    assert debris(store) == []


@pytest.mark.parametrize("kind", ["garbage", "folder", "link", "empty"])
def test_what_is_no_name_of_ours_is_taken_all_the_same(store: Store, kind: str) -> None:
    make(store, "other")
    path = store.folder / "names" / "one"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(store.folder / "names" / "other")
    else:
        path.write_text("" if kind == "empty" else "../../etc\n")
    with pytest.raises(NoSuchSnapshot):
        Stores([store]).open("one")
    with pytest.raises(AlreadyExists):
        make(store, "one")
    assert list(store.names()) == ["other"]


def test_a_name_whose_snapshot_is_gone_is_free(store: Store) -> None:
    make(store, "one")
    (store.folder / "names" / "one").write_text("0" * 16 + "\n")
    with pytest.raises(NoSuchSnapshot):
        Stores([store]).open("one")
    id = make(store, "one")
    assert store.names() == {"one": id}


def test_digests(store: Store) -> None:
    """One that leads to a snapshot never leads to another; but a removed one can come again."""
    one, two = make(store, None), make(store, None)
    store.note_digest(one, f"sha256:{HEX}")
    store.note_digest(two, f"sha256:{HEX}")
    assert Stores([store]).find(f"x@sha256:{HEX}") == (store, one)
    store.remove(one)
    with pytest.raises(NoSuchSnapshot):
        Stores([store]).find(f"x@sha256:{HEX}")
    store.note_digest(two, f"sha256:{HEX}")
    assert Stores([store]).find(f"x@sha256:{HEX}") == (store, two)


# Several stores


def test_stores_are_looked_through_in_turn(tmp_path: Path) -> None:
    config = Config({"snapshots": f"{tmp_path}/a:{tmp_path}/b", "stripes": f"{tmp_path}/s"})
    stores = Stores.of(config)
    assert [store.folder.name for store in stores] == ["a", "b"]
    assert stores.first.stripes == (tmp_path / "s",)
    first, second = stores
    one = make(second, "one")
    make(second, "two")
    two = make(first, "two")
    assert stores.find("one") == (second, one)
    assert stores.find(parse("two")) == (first, two)
    assert stores.at(second.path_of(one)) == (second, one)
    for path in (tmp_path / "c" / "snapshots" / one, first.path_of(one), second.folder / "names"):
        with pytest.raises(NoSuchSnapshot):
            stores.at(path)


# Making one


def test_a_draft_appears_whole_and_at_once(store: Store) -> None:
    with store.draft("one") as draft:
        assert draft.path.stat().st_mode & 0o777 == 0o700
        write(draft.path)
        inode = draft.path.stat().st_ino
        assert store.ids() == []
        assert store.names() == {}
        with pytest.raises(NoSuchSnapshot):
            Stores([store]).open("one")
    assert store.snapshot(draft.id).config == CONFIG
    assert store.path_of(draft.id).stat().st_ino == inode, "one rename"
    assert debris(store) == []
    for folder in ("", "names", "snapshots"):
        assert (store.folder / folder).stat().st_mode & 0o777 == 0o700


def test_everything_is_on_the_disk_before_it_is_there(
    striped: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool, bool]] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        synced.append((path.name, bool(striped.ids()), bool(striped.names())))
        fsync(fd)

    with striped.draft("one") as draft:
        write(draft.path)
        (draft.pages[1] / "pages-2.img.0000").touch()
        monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.undo()
    contents = {p.name for root in draft.roots for p in (root, *root.rglob("*")) if p != root}
    assert contents <= {name for name, there, _ in synced if not there}
    assert synced[-1] == ("names", True, True), "and the renames too"


def test_published_before_its_maker_is_done(store: Store) -> None:
    with store.draft("one") as draft:
        write(draft.path)
        draft.mark_shared()
        draft.publish()
        draft.publish()
        assert Stores([store]).open("one").shared
        assert draft.path == store.path_of(draft.id)
    assert store.ids() == [draft.id]
    assert debris(store) == []


@pytest.mark.parametrize("publish", [False, True])
def test_a_maker_that_fails_leaves_nothing(striped: Store, publish: bool) -> None:
    def fail() -> None:
        with striped.draft("one") as draft:
            write(draft.path)
            if publish:
                draft.publish()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert striped.ids() == []
    assert striped.names() == {}
    assert debris(striped) == []


def test_striped(striped: Store, tmp_path: Path) -> None:
    with striped.draft("one") as draft:
        write(draft.path)
        assert [folder.name for folder in draft.pages] == ["pages"] * 3
        piece = draft.pages[0] / "pages-1.img.0000"
        piece.rename(draft.pages[2] / piece.name)
    snapshot = striped.snapshot(draft.id)
    assert snapshot.roots == tuple(
        root / "snapshots" / draft.id for root in (striped.folder, *striped.stripes)
    )
    assert snapshot.pages == tuple(root / "pages" for root in snapshot.roots)
    assert snapshot.piece("pages-1.img.0000") == snapshot.pages[2] / "pages-1.img.0000"
    plain = Store(striped.folder).snapshot(draft.id)
    assert len(plain.roots) == 1
    striped.remove(draft.id)
    assert inside(tmp_path) == ["disk1/snapshots", "disk2/snapshots", "store/names/.lock",
                                "store/snapshots"]  # fmt: skip


def test_a_stripe_that_others_can_write_to(striped: Store, tmp_path: Path) -> None:
    id = make(striped, "one")
    (tmp_path / "disk1" / "snapshots" / id).chmod(0o777)
    with pytest.raises(Unfit, match=r"disk1.* can be written to by others"):
        striped.snapshot(id)


# Killed


MAKER = """
import os, sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from fakes.snapshots import make, write
from shim.snapshot import store as module
from shim.snapshot.store import Store
store = Store({store!r}, {stripes!r})
def kill_after(number):
    # Every change of the file system's names is a place to be killed at.
    left = [number]
    def counted(function):
        def call(*args, **kwargs):
            if not left[0]:
                os.kill(os.getpid(), 9)
            left[0] -= 1
            return function(*args, **kwargs)
        return call
    for name in ("rename", "link", "unlink", "mkdir", "rmdir", "fsync", "open"):
        setattr(os, name, counted(getattr(os, name)))
kill_after({number})
{action}
print("done", flush=True)
"""


def killed(store: Store, number: int, action: str) -> bool:
    """Whether another process, which does `action`, was killed at that step of it."""
    script = MAKER.format(
        tests=str(CHECKOUT / "tests"),
        store=str(store.folder),
        stripes=[str(stripe) for stripe in store.stripes],
        number=number,
        action=action,
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, cwd=CHECKOUT, check=False, timeout=60
    )
    assert done.returncode in (0, -9), done.stderr.decode()
    return done.returncode == -9


def at_all_steps(store: Store, action: str, check: Callable[[bool], None], every: int = 1) -> None:
    """Kill it at one step after the other, until there are no more."""
    number = 0
    while True:
        was_killed = killed(store, number, action)
        check(was_killed)
        if not was_killed:
            return
        number += every


def test_a_maker_that_is_killed_anywhere(striped: Store, tmp_path: Path) -> None:
    """There is a whole snapshot under the name or none, and the next maker sweeps the rest."""
    (striped.folder).mkdir(mode=0o700)

    def check(was_killed: bool) -> None:
        found = striped.names().get("one")
        if found is not None:
            assert striped.snapshot(found).config == CONFIG
        assert was_killed or found is not None
        for id in striped.ids():
            assert striped.snapshot(id).config == CONFIG, "whole, though it may have no name"
        striped.folder.joinpath("snapshots").mkdir(exist_ok=True)
        with striped.draft(None) as draft:  # sweeps
            write(draft.path)
        assert debris(striped) == []
        for id in striped.ids():
            striped.remove(id)
        assert striped.names() == {}
        assert debris(striped) == []

    for stripe in striped.stripes:
        (stripe / "snapshots").mkdir(parents=True)
    at_all_steps(striped, 'make(store, "one")', check, every=7)


def test_one_who_removes_and_is_killed_anywhere(striped: Store) -> None:
    """It is there whole or not at all; its names go first."""
    one = make(striped, "one")

    def check(was_killed: bool) -> None:
        nonlocal one
        there = one in striped.ids()
        if there:
            assert striped.snapshot(one).config == CONFIG
            assert (striped.stripes[0] / "snapshots" / one).is_dir()
        else:
            assert striped.names() == {}
        assert was_killed or not there
        striped.sweep()
        assert debris(striped) == []
        if not there:
            one = make(striped, "one")
        else:
            striped.tag("one", one, replace=True)

    at_all_steps(striped, "store.remove(store.ids()[0])", check, every=3)


def test_one_who_moves_a_name_and_is_killed_anywhere(store: Store) -> None:
    one, two = sorted([make(store, "name"), make(store, None)])

    def check(was_killed: bool) -> None:
        found = store.names()["name"]
        assert found in (one, two)
        assert was_killed or found == two
        assert sorted(store.ids()) == [one, two]
        store.tag("name", one, replace=True)
        store.sweep()
        assert debris(store) == []

    store.tag("name", one, replace=True)
    at_all_steps(store, 'store.tag("name", max(store.ids()), replace=True)', check)


def test_what_a_living_maker_has_is_its_own(store: Store) -> None:
    with store.draft("slow") as draft:
        make(store, "other")
        store.sweep()
        write(draft.path)
    assert sorted(store.names()) == ["other", "slow"]


def test_things_that_look_like_drafts(store: Store, tmp_path: Path) -> None:
    """A link is not followed, and nothing of it hinders."""
    make(store, "one")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (store.folder / ".draft-1").symlink_to(tmp_path / "precious")
    (store.folder / f".draft-{'0' * 16}").symlink_to(tmp_path / "precious")
    (store.folder / ".draft-2").touch()
    (store.folder / ".draft-3").mkdir()
    os.mkfifo(store.folder / ".draft-4")
    (store.folder / ".pull-5").mkdir()
    make(store, "two")
    assert (tmp_path / "precious" / "file").exists()
    assert not (store.folder / ".draft-3").exists()
    assert (store.folder / ".pull-5").exists()


# Removing one


def test_removed_with_all_that_leads_to_it(store: Store) -> None:
    one, two = make(store, "one"), make(store, "two")
    store.tag("more", one)
    store.note_digest(one, f"sha256:{HEX}")
    store.remove(one)
    assert store.names() == {"two": two}
    assert store.ids() == [two]
    assert os.listdir(store.folder / "digests") == []
    assert debris(store) == []


def test_not_while_it_is_restored_from(store: Store) -> None:
    one = make(store, "one")
    with held(store.path_of(one)):
        with pytest.raises(FailedPrecondition, match=f"{one} is being restored from"):
            store.remove(one)
        assert Stores([store]).open("one").config == CONFIG
        remover = threading.Thread(target=store.remove, args=(one, True))
        remover.start()
        remover.join(0.2)
        assert remover.is_alive(), "told to wait, it does"
        assert store.ids() == [one]
    remover.join()
    assert store.ids() == []


def test_two_remove_it_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make(store, "one")
    lock = module._lock_to_remove

    def late(path: Path, id: str, wait: bool) -> int | None:
        monkeypatch.undo()
        store.remove(id)
        return lock(path, id, wait)

    monkeypatch.setattr(module, "_lock_to_remove", late)
    with pytest.raises(NoSuchSnapshot):
        store.remove(one)


def test_not_while_it_is_made(store: Store) -> None:
    with store.draft("one") as draft:
        write(draft.path)
        draft.publish()
        with pytest.raises(FailedPrecondition, match="or made"):
            store.remove(draft.id)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_only_has_the_place_of_one_is_removed_too(
    store: Store, tmp_path: Path, kind: str
) -> None:
    id = make(store, "one")
    place = store.path_of(id)
    place.rename(tmp_path / "kept")
    place.touch() if kind == "file" else place.symlink_to(tmp_path / "kept")
    with pytest.raises(Unfit, match="is not a folder"):
        store.snapshot(id)
    assert "is not a folder" in store.entries()[0].error
    store.remove(id)
    assert store.ids() == []
    assert (tmp_path / "kept" / "config.json").exists()


# Marks and lists


def test_marks(store: Store) -> None:
    id = make(store, "one")
    snapshot = store.snapshot(id)
    assert (snapshot.shared, snapshot.used) == (False, 0.0)
    store.mark_shared(id, True)
    store.mark_shared(id, True)
    store.mark_used(id)
    entry = store.entries()[0]
    assert (entry.shared, snapshot.shared) == (True, True)
    assert entry.used == snapshot.used > entry.created > 0
    os.utime(store.path_of(id) / "used", (1, 1))
    store.mark_used(id)
    assert snapshot.used > 1
    store.mark_shared(id, False)
    assert not snapshot.shared
    with pytest.raises(NoSuchSnapshot):
        store.mark_shared("0" * 16, True)
    store.mark_used("0" * 16)  # matters to nobody


def test_entries(store: Store) -> None:
    one, two = make(store, "one"), make(store, None)
    store.tag("another", one)
    (store.path_of(two) / "config.json").write_text("{}")
    (store.folder / "snapshots" / "no-id").mkdir()
    entries = {entry.id: entry for entry in store.entries()}
    assert entries.keys() == {one, two}
    assert entries[one].names == ["another", "one"]
    assert (entries[one].error, entries[one].digest) == ("", "")
    assert entries[one].snapshot is not None
    assert entries[one].size > 0
    assert "config.json" in entries[two].error
    assert entries[two].snapshot is None


def test_one_that_goes_while_it_is_listed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = sorted([make(store, "one"), make(store, "two")])
    real = module.size_of

    def late(path: Path) -> int:
        if path.name == one:
            store.remove(one)
        return real(path)

    monkeypatch.setattr(module, "size_of", late)
    assert [entry.id for entry in store.entries()] == [two]


# A store that is not ours to write, or full


@pytest.fixture
def read_only(store: Store) -> Iterator[Store]:
    if os.geteuid() != 0:
        pytest.skip("mounts need root")
    make(store, "one")
    subprocess.run(["mount", "--bind", store.folder, store.folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", store.folder], check=True)
        yield store
    finally:
        subprocess.run(["umount", "-l", store.folder], check=True)


def test_a_read_only_store(read_only: Store) -> None:
    id = read_only.ids()[0]
    with held(read_only.path_of(id)):
        assert Stores([read_only]).open("one").config == CONFIG
    assert read_only.entries()[0].names == ["one"]
    read_only.mark_used(id)
    writes: list[Callable[[], object]] = [
        lambda: make(read_only, "two"),
        lambda: make(read_only, None),
        lambda: read_only.tag("two", id),
        lambda: read_only.untag("one"),
        lambda: read_only.remove(id),
        lambda: read_only.mark_shared(id, True),
        lambda: read_only.note_digest(id, f"sha256:{HEX}"),
    ]
    for write_ in writes:
        with pytest.raises(FailedPrecondition, match=f"cannot write to {read_only.folder}"):
            write_()
    assert read_only.names() == {"one": id}
    assert read_only.snapshot(id).config == CONFIG


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Store]:
    """A store of one MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounts need root")
    folder = tmp_path / "small"
    folder.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", folder], check=True)
    try:
        yield Store(folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_store(small: Store) -> None:
    one = make(small, "one")

    def overfill() -> None:
        with small.draft("two") as draft:
            (draft.path / "criu").mkdir()
            (draft.path / "criu" / "core-1.img").write_bytes(b"x" * (2 << 20))

    with pytest.raises(StoreFull, match="no room left"):
        overfill()
    assert small.ids() == [one]
    assert debris(small) == []
    (small.folder / "ballast").write_bytes(b"x" * os.statvfs(small.folder).f_bavail * 4096)
    for write_ in (lambda: make(small, "two"), lambda: small.tag("more", one)):
        with pytest.raises(StoreFull, match="no room left") as refused:
            write_()
        assert "thaw gc" in refused.value.hint
    assert small.names() == {"one": one}
    small.remove(one)
    assert small.ids() == []


def test_a_store_without_locks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS as some mount it: nothing is held then, and nothing swept."""

    def refuse(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    id = make(store, "one")
    (store.folder / ".draft-1").mkdir()
    with held(store.path_of(id)):
        assert Stores([store]).open("one").id == id
    with pytest.raises(AlreadyExists):
        make(store, "one")
    make(store, "two")
    assert (store.folder / ".draft-1").exists()
    store.remove(id)


@pytest.mark.parametrize("folder", ["", "names", "snapshots", "digests", "leases", "lost", "key"])
def test_a_store_that_others_can_write_to(store: Store, folder: str) -> None:
    make(store, "one")
    (store.folder / "digests").mkdir()
    (store.folder / "leases").mkdir()
    (store.folder / "lost").mkdir()
    (store.folder / "key").touch()
    (store.folder / folder).chmod(0o777)
    with pytest.raises(Unfit, match="written to by others"):
        make(store, "two")
    with pytest.raises(Unfit, match="written to by others"):
        Stores([store]).open("one")
    assert "written to by others" in store.entries()[0].error
