"""A manifest comes from a registry: whatever its bytes are, it is one of ours or Unfit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.errors import Damaged, Unfit
from shim.snapshot.manifest import CONFIG, KINDS, MOST_LAYERS, TITLE, Descriptor, Manifest

SKELETON, PAGES, ROOTFS, VOLUME = (kind.media_type for kind in KINDS)


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


MANIFEST = Manifest(
    Descriptor(CONFIG, digest(1), 100),
    [
        Descriptor(SKELETON, digest(2), 2048, "skeleton.tar"),
        Descriptor(PAGES, digest(3), 1 << 30, "pages/pages-1.img.0000"),
        Descriptor(PAGES, digest(4), 4096, "pages/pages-1.img.0001"),
        Descriptor(ROOTFS, digest(5), 1024, "rootfs.tar.0000"),
        Descriptor(VOLUME, digest(5), 1024, "volumes/12.tar.0000"),
    ],
    "2026-08-01T12:00:00Z",
)
TEXT = MANIFEST.to_json()
DOCUMENT: dict[str, Any] = json.loads(TEXT)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path, *(found for key, item in inner for found in places(item, (*path, key)))]


PLACES = places(DOCUMENT)


def changed(place: tuple[Any, ...], value: Any) -> bytes:
    document = json.loads(TEXT)
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    if place:
        inner[place[-1]] = value
    else:
        document = value
    return json.dumps(document).encode()


def parsed(text: bytes) -> None:
    """It is refused, or all of it is such that it can be used."""
    found: Manifest | Unfit
    try:
        found = Manifest.parse(text)
    except Unfit as error:
        found = error
    if isinstance(found, Unfit):
        assert len(found.message) < 400
        return
    for layer in found.layers:
        assert ".." not in layer.title
        assert not layer.title.startswith("/")
        assert 0 <= layer.size <= 8 << 30
        assert len(layer.hex) == 64
    assert found.layers[0].title == "skeleton.tar"
    assert Manifest.parse(found.to_json()) == found


def test_what_is_written_is_read() -> None:
    assert Manifest.parse(TEXT) == MANIFEST
    assert [blob.digest for blob in MANIFEST.blobs] == [digest(n) for n in (1, 2, 3, 4, 5)]


@given(st.binary(max_size=200))
def test_noise(noise: bytes) -> None:
    with pytest.raises(Unfit, match="manifest"):
        Manifest.parse(noise)


@given(JSON)
def test_any_json(value: Any) -> None:
    parsed(json.dumps(value).encode())


@given(st.sampled_from(PLACES), JSON)
def test_another_value_anywhere(place: tuple[Any, ...], value: Any) -> None:
    parsed(changed(place, value))


@given(st.integers(0, len(TEXT) - 1), st.integers(1, 255))
def test_another_byte_anywhere(place: int, change: int) -> None:
    data = bytearray(TEXT)
    data[place] ^= change
    parsed(bytes(data))


@pytest.mark.parametrize("place", [place for place in PLACES if place], ids=str)
def test_a_field_that_is_missing(place: tuple[Any, ...]) -> None:
    document = json.loads(TEXT)
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    parsed(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (
            ("artifactType",),
            "application/vnd.oci.image.config.v1+json",
            "is no application/vnd.thaw",
        ),
        (("mediaType",), "application/vnd.docker.distribution.manifest.v2+json", "is no"),
        (("schemaVersion",), 3, "schemaVersion"),
        (("schemaVersion",), True, "schemaVersion"),
        (("config", "mediaType"), SKELETON, "config"),
        (("config", "size"), (8 << 20) + 1, "config"),
        (("config", "digest"), "md5:00", "bad digest"),
        (("config", "digest"), "sha256:" + "A" * 64, "bad digest"),
        (("config", "digest"), digest(1) + "\n", "bad digest"),
        (("layers",), [], "is not the first"),
        (("layers",), {}, "no list"),
        (("layers", 1, "size"), (1 << 30) + 1, "too many"),
        (("layers", 1, "size"), -1, "bad digest .* or size -1"),
        (("layers", 1, "size"), 1.5, "no mediaType"),
        (("layers", 0, "size"), (8 << 30) + 1, "too many"),
        (("layers", 1, "mediaType"), "application/vnd.thaw.gpu.v1", "unknown kind"),
        (("layers", 1, "mediaType"), ROOTFS, "bad title"),
        (("layers", 0, "annotations", TITLE), "skeleton.tar.0000", "bad title"),
        (("layers", 2, "annotations", TITLE), "pages/pages-1.img.0000", "are one file"),
        (("layers", 4, "size"), 1025, "has two sizes"),
        (("layers", 4, "mediaType"), PAGES, "bad title"),
        (("layers", 1), DOCUMENT["layers"][3], "are one file"),
        (("layers", 3, "mediaType"), [], "no mediaType"),
        (("annotations",), {"org.opencontainers.image.created": 1}, "time of creation"),
        (("annotations",), {"org.opencontainers.image.created": "x" * 65}, "time of creation"),
    ],
)
def test_what_is_wrong_is_said(place: tuple[Any, ...], value: Any, words: str) -> None:
    with pytest.raises(Unfit, match=words):
        Manifest.parse(changed(place, value))


@pytest.mark.parametrize(
    "title",
    [
        *("", "/etc/passwd", "../x", "pages/../x", "pages/pages-1.img", "pages/pages-1.img.00000"),
        *("pages/pages-1.img.0000\n", "pages/pages-1.img.0000/x", "pages//pages-1.img.0000"),
        *("config.json", "shared", "index.json", "criu/x.img", "pages/pages-0.img.0000", "pages"),
        "pages/pages-1.img." + "\u0660" * 4,
    ],
)
def test_titles_that_lead_elsewhere(title: str) -> None:
    with pytest.raises(Damaged, match="bad title"):
        Manifest.parse(changed(("layers", 1, "annotations", TITLE), title))


def test_layers_out_of_order() -> None:
    layers = DOCUMENT["layers"]
    for order in (layers[1:] + layers[:1], [layers[0], *layers[:0:-1]], layers[1:]):
        with pytest.raises(Damaged, match=r"order|first"):
            Manifest.parse(changed(("layers",), order))


def test_documents_that_are_too_large() -> None:
    with pytest.raises(Unfit, match="too many"):
        Manifest.parse(TEXT + b" " * (4 << 20))
    layer = {**DOCUMENT["layers"][1], "annotations": {}}
    with pytest.raises(Unfit, match="too long"):
        Manifest.parse(changed(("layers",), [layer] * (MOST_LAYERS + 1)))


@pytest.mark.parametrize("depth", [100, 1000, 100_000])
def test_nesting(depth: int) -> None:
    for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        for place in ((), ("config",), ("layers", 0), ("annotations",), ("artifactType",)):
            around = changed(place, "@").decode()
            parsed(around.replace('"@"', text).encode())
