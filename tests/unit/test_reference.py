"""What may name a snapshot: names, digests, image references; never a path."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim import names
from shim.errors import BadName
from shim.reference import check_name, parse

PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
DIGEST = f"sha256:{'0a' * 32}"


@given(st.text() | st.text("abz019._-/@:A \n", max_size=70) | st.from_regex(PATTERN))
def test_names(name: str) -> None:
    if PATTERN.fullmatch(name) and name != "auto":
        assert check_name(name) == name
        assert parse(name).name == name
        return
    with pytest.raises(BadName) as refused:
        check_name(name)
    assert refused.value.hint
    assert len(refused.value.message) < 600


@pytest.mark.parametrize("name", ["a", "0", "x" * 63, "qwen3-8b", "a.b_c-d", "auto1", "autos"])
def test_good_names(name: str) -> None:
    found = parse(name)
    assert (found.name, found.digest, found.remote, found.auto) == (name, "", False, False)
    pinned = parse(f"{name}@{DIGEST}")
    assert (pinned.name, pinned.digest, pinned.hex) == (name, DIGEST, "0a" * 32)


def test_auto() -> None:
    assert parse("auto").auto
    assert not parse("localhost/auto:auto").auto


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("registry.example/team/worker:v1", "registry.example", "team/worker", "v1", ""),
        ("registry.example:5000/worker:V_1.0-x", "registry.example:5000", "worker", "V_1.0-x", ""),
        ("localhost/a:b", "localhost", "a", "b", ""),
        ("127.0.0.1:5000/a/b__c/d:1", "127.0.0.1:5000", "a/b__c/d", "1", ""),
        ("[::1]:5000/a:b", "[::1]:5000", "a", "b", ""),
        ("host:1/a:b", "host:1", "a", "b", ""),
        (f"r.example/a@{DIGEST}", "r.example", "a", "", DIGEST),
        (f"r.example/a:b@{DIGEST}", "r.example", "a", "b", DIGEST),
    ],
)
def test_artifacts(text: str, registry: str, repository: str, tag: str, digest: str) -> None:
    found = parse(text)
    assert (found.registry, found.repository) == (registry, repository)
    assert (found.tag, found.digest, found.remote) == (tag, digest, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "bad snapshot name"),
        ("x" * 64, "bad snapshot name"),
        (".", "bad snapshot name"),
        ("-x", "bad snapshot name"),
        ("X", "bad snapshot name"),
        ("a b", "bad snapshot name"),
        ("ü", "bad snapshot name"),
        ("²", "bad snapshot name"),
        ("a:1", "has a tag, but no registry"),
        ("a@sha256", "bad digest"),
        ("a@sha256:", "bad digest"),
        (f"a@md5:{'0' * 64}", "bad digest"),
        (f"a@{DIGEST[:-1]}", "bad digest"),
        (f"a@{DIGEST.upper()}", "bad digest"),
        (f"a@{DIGEST}@{DIGEST}", "bad digest"),
        (f"auto@{DIGEST}", "is reserved"),
        ("a/b:1", "bad snapshot reference"),  # no registry, but somebody's default one
        ("../a:1", "bad snapshot reference"),
        ("r.example/../a:1", "bad snapshot reference"),
        ("r.example/a//b:1", "bad snapshot reference"),
        ("r.example/A:1", "bad snapshot reference"),
        ("r.example/a", "neither a tag nor a digest"),
        ("r.example/a:", "bad snapshot reference"),
        ("r.example/a:.x", "bad snapshot reference"),
        ("r.example/a:" + "t" * 129, "bad snapshot reference"),
        ("r.example:0/a:1", "bad snapshot reference"),
        ("r.example:65536/a:1", "bad snapshot reference"),
        ("r.example:x/a:1", "bad snapshot reference"),
        ("r..example/a:1", "bad snapshot reference"),
        ("-r.example/a:1", "bad snapshot reference"),
        ("[::1/a:1", "bad snapshot reference"),
        ("/a:1", "bad snapshot reference"),
        ("r.example/" + "a" * 256 + ":1", "bad snapshot reference"),
        ("r.example/" + "/".join("a" * 100) + ":1", "bad snapshot reference"),  # its file's name
        ("x" * 100_000, "bad snapshot reference"),
    ],
)
def test_what_is_none(text: str, words: str) -> None:
    with pytest.raises(BadName, match=words) as refused:
        parse(text)
    assert refused.value.hint
    assert len(refused.value.message) < 200


@given(st.text("abz019._-/@:A%[] \n\0", max_size=60))
def test_whatever_it_is_its_file_is_in_the_folder(text: str) -> None:
    try:
        found = parse(text)
    except BadName:
        return
    assert "/" not in found.file_name
    assert "\0" not in found.file_name
    assert found.file_name not in ("", ".", "..")
    assert ("%" in found.file_name) == found.remote, "no artifact has the file of a name"
    if not found.digest:
        assert names.unquoted(found.file_name) == text


@pytest.mark.parametrize(
    ("prefixes", "within"),
    [
        ([], False),
        (["r.example"], True),
        (["r.example/"], True),
        (["r.example/team"], True),
        (["r.example/team/worker"], True),
        (["r.example/tea"], False),
        (["r.exampl"], False),
        (["r.example/team/worker/x"], False),
        (["other", "r.example/team"], True),
    ],
)
def test_prefixes(prefixes: list[str], within: bool) -> None:
    assert parse("r.example/team/worker:1").within(prefixes) == within
    assert not parse("r.example").within(["r.example"]), "a name is in no registry"
