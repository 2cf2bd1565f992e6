"""What a verb looks into: a snapshot of a store, by its reference, or any folder with images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shim.config import Config
from shim.errors import InvalidArgument, NotFound
from shim.names import SNAPSHOTS
from shim.snapshot.inspection import Inspection, look
from shim.snapshot.store import CONFIG, Snapshot, Stores, held, open_at


@dataclass(frozen=True)
class Subject:
    """Images with all that goes with them. `snapshot` is None for a bare folder of them."""

    name: str  # as it was given
    path: Path
    snapshot: Snapshot | None
    images: Path
    index: Path
    pages: Sequence[Path]  # folders with the pages, in pieces or whole

    @property
    def pieces(self) -> Sequence[Path] | None:
        """The folders with the pieces of the pages; None if they are whole, with the images."""
        whole = self.snapshot is None or tuple(self.pages) == (self.images,)
        return None if whole else self.pages

    def look(self) -> Inspection:
        """Look into it. Raises Unfit."""
        return look(self.images, self.index, self.pieces)


@contextmanager
def opened(text: str, config: Config) -> Iterator[Subject]:
    """What `text` names, kept from being removed for the length of the block.

    A path begins with / or with a dot; all else is a reference. Raises BadName, NotFound,
    InvalidArgument, Unfit.
    """
    if not text.startswith(("/", ".")):
        store, id = Stores.of(config).find(text)
        with held(store.path_of(id)):
            yield _of_snapshot(text, store.snapshot(id))
        return
    path = Path(text)
    if not path.is_dir():
        raise NotFound(f"{path} is no folder", hint="no name of a snapshot begins with / or .")
    with held(path):
        yield _of_folder(text, path, config)


def _of_snapshot(name: str, snapshot: Snapshot) -> Subject:
    return Subject(name, snapshot.path, snapshot, snapshot.criu, snapshot.index, snapshot.pages)


def _of_folder(name: str, path: Path, config: Config) -> Subject:
    if (path / CONFIG).is_file() and (path / "criu").is_dir():
        stripes = [Path(stripe) / SNAPSHOTS / path.name for stripe in config.several("stripes")]
        return _of_snapshot(name, open_at(path, stripes))
    for images in (path / "criu", path):
        if (images / "inventory.img").is_file():
            return Subject(name, path, None, images, path / "index", (images,))
    raise InvalidArgument(
        f"{path} has no CRIU images in it",
        hint="a snapshot's folder is meant, or the one with inventory.img",
    )
