"""The manifest of a snapshot as an OCI artifact: which blobs, of which kind, under which names.

https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md. It comes from registries: what
it says is checked in full before anything is done with it.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from shim.errors import Damaged, Unfit
from shim.lean.values import Value
from shim.snapshot.config import DIFFERENCE_PART, LARGEST, VOLUME_PART, parse_json

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
SNAPSHOT = "application/vnd.thaw.snapshot.v1"
CONFIG = "application/vnd.thaw.config.v1+json"
TITLE = "org.opencontainers.image.title"
CREATED = "org.opencontainers.image.created"

LARGEST_MANIFEST = 4 << 20  # bytes
MOST_LAYERS = 4096
BLOB = 1 << 30  # bytes of one, at most; but for the skeleton
SKELETON = "skeleton.tar"
PAGES = "pages"

_HINT = "it is no snapshot of Thaw, or somebody has changed it"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


class Kind(NamedTuple):
    """One kind of layer."""

    media_type: str
    titles: re.Pattern[str]  # which names its files can have
    largest: int  # bytes


# In the order in which they stand in a manifest.
KINDS = (
    Kind("application/vnd.thaw.skeleton.v1.tar", re.compile(re.escape(SKELETON)), 8 << 30),
    Kind(
        "application/vnd.thaw.pages.v1",
        re.compile(PAGES + r"/(?:pages|gpu)-[1-9][0-9]{0,9}\.img\.[0-9]{4}", re.ASCII),
        BLOB,
    ),
    Kind("application/vnd.thaw.rootfs.v1.tar", DIFFERENCE_PART, BLOB),
    Kind("application/vnd.thaw.volume.v1.tar", VOLUME_PART, BLOB),
)


class Descriptor(Value):
    """A blob: its kind, "sha256:…", bytes, and the file that it is in a snapshot's folder."""

    media_type: str
    digest: str
    size: int
    title: str = ""  # the config has none

    @property
    def hex(self) -> str:
        """The digest's 64 digits: the blob's name in blobs/sha256."""
        return self.digest.removeprefix("sha256:")

    def as_dict(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        found: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        return {**found, "annotations": {TITLE: self.title}} if self.title else found


class Manifest(Value):
    """What a snapshot consists of. `created` is the time of the checkpoint, RFC 3339."""

    config: Descriptor
    layers: list[Descriptor]
    created: str

    @property
    def blobs(self) -> list[Descriptor]:
        """All of them, each once, the config first."""
        return list({blob.digest: blob for blob in (self.config, *self.layers)}.values())

    def to_json(self) -> bytes:
        """The document: the same manifest always has the same bytes."""
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": SNAPSHOT,
            "config": self.config.as_dict(),
            "layers": [layer.as_dict() for layer in self.layers],
            "annotations": {CREATED: self.created},
        }
        return json.dumps(document, indent=1).encode() + b"\n"

    @classmethod
    def parse(cls, text: bytes, where: str = "manifest") -> Manifest:
        """Read a document. Raises Unfit, in words that begin with `where`."""
        if len(text) > LARGEST_MANIFEST:
            raise _bad(where, f"{len(text)} bytes are too many")
        document = parse_json(text, where)
        if not isinstance(document, dict):
            raise _bad(where, "not a JSON object")
        if document.get("artifactType") != SNAPSHOT or document.get("mediaType") != MANIFEST:
            found = document.get("artifactType") or document.get("mediaType")
            raise Unfit(f"{where}: {_shown(found)} is no {SNAPSHOT}", hint=_HINT)
        if type(document.get("schemaVersion")) is not int or document["schemaVersion"] != 2:
            raise _bad(where, "schemaVersion is not 2")
        config = _descriptor(document.get("config"), f"{where}: config")
        if config.media_type != CONFIG or config.size > LARGEST:
            raise _bad(where, f"config: {_shown(config.media_type)}, {config.size} bytes")
        return cls(config, _layers(document.get("layers"), where), _created(document, where))


def _layers(found: object, where: str) -> list[Descriptor]:
    if not isinstance(found, list) or len(found) > MOST_LAYERS:
        raise _bad(where, "layers: no list, or too long a one")
    layers, kinds = [], []
    for number, item in enumerate(found):
        layer = _descriptor(item, f"{where}: layer {number}")
        layers.append(layer)
        kinds.append(_kind(layer, f"{where}: layer {number}"))
    if len({layer.title for layer in layers}) != len(layers):
        raise _bad(where, "two layers are one file")
    if kinds[:1] != [0] or kinds != sorted(kinds):
        raise _bad(where, f"layers: {SKELETON} is not the first, or others are out of order")
    # One blob cannot have two sizes.
    if len({(layer.digest, layer.size) for layer in layers}) != len({la.digest for la in layers}):
        raise _bad(where, "one digest has two sizes")
    return layers


def _kind(layer: Descriptor, where: str) -> int:
    """Its place in KINDS."""
    for place, kind in enumerate(KINDS):
        if kind.media_type == layer.media_type:
            if not kind.titles.fullmatch(layer.title):
                raise _bad(where, f"bad title {_shown(layer.title)}")
            if layer.size > kind.largest:
                raise _bad(where, f"{layer.size} bytes are too many")
            return place
    raise Unfit(
        f"{where}: unknown kind {_shown(layer.media_type)}",
        hint="perhaps a newer version of Thaw made it",
    )


def _descriptor(found: object, where: str) -> Descriptor:
    if not isinstance(found, dict):
        raise _bad(where, "not an object")
    kind, digest, size = (found.get(name) for name in ("mediaType", "digest", "size"))
    if not isinstance(kind, str) or not isinstance(digest, str) or type(size) is not int:
        raise _bad(where, "no mediaType, digest and size")
    if not _DIGEST.fullmatch(digest) or not 0 <= size < 1 << 63:
        raise _bad(where, f"bad digest {_shown(digest)} or size {size}")
    notes = found.get("annotations")
    title = notes.get(TITLE, "") if isinstance(notes, dict) else ""
    if not isinstance(title, str):
        raise _bad(where, "bad title")
    return Descriptor(kind, digest, size, title)


def _created(document: dict[str, Any], where: str) -> str:
    notes = document.get("annotations")
    created = notes.get(CREATED, "") if isinstance(notes, dict) else ""
    if not isinstance(created, str) or len(created) > 64 or not created.isascii():
        raise _bad(where, "bad time of creation")
    return created


def _bad(where: str, what: str) -> Damaged:
    return Damaged(f"{where}: {what}", hint=_HINT)


def _shown(value: object) -> str:
    return f"a {type(value).__name__}" if isinstance(value, list | dict) else f"{value!a:.80}"
