"""The file of credentials: docker's form, root's alone, no programs."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from shim.errors import BadConfiguration
from shim.registry.credentials import Login, login_for

HOST = "registry.example:5000"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "auth.json"


def write(path: Path, document: object) -> str:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    path.chmod(0o600)
    return str(path)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize("key", [HOST, f"https://{HOST}"])
def test_a_user_and_a_password(path: Path, key: str) -> None:
    login = login_for(HOST, write(path, {"auths": {key: {"auth": encoded("me:a:b")}}}))
    assert login == Login("me", "a:b")
    assert login.basic == f"Basic {encoded('me:a:b')}"
    assert "a:b" not in repr(login)


def test_an_identity_token(path: Path) -> None:
    entry = {"auth": encoded("me:"), "identitytoken": "secret"}
    login = login_for(HOST, write(path, {"auths": {HOST: entry}}))
    assert login == Login(identity_token="secret")
    assert "secret" not in repr(login)


def test_nothing_for_this_one(path: Path) -> None:
    assert login_for(HOST, "") is None
    assert login_for(HOST, str(path)) is None
    others = {"other.example": {"auth": encoded("me:x")}, "registry.example": {}}
    assert login_for(HOST, write(path, {"auths": others})) is None
    assert login_for("registry.example", str(path)) is None


@pytest.mark.parametrize(
    "document",
    [{"credHelpers": {HOST: "evil"}}, {"credsStore": "evil"}, {"credsStore": "evil", "auths": {}}],
)
def test_programs_are_refused_by_name(path: Path, document: object) -> None:
    with pytest.raises(BadConfiguration, match="docker-credential-evil"):
        login_for(HOST, write(path, document))


@pytest.mark.parametrize(
    "document",
    [
        *("", "[", "[]", "[" * 100_000, '{"auths": []}', {"auths": {HOST: "x"}}),
        *({"auths": {HOST: {"auth": text}}} for text in ("?", 1, encoded("me"), "/w==")),
        {"auths": {HOST: {"identitytoken": ["secret"]}}},
        {"auths": {}, "credHelpers": []},
    ],
)
def test_what_is_no_such_file(path: Path, document: object) -> None:
    with pytest.raises(BadConfiguration, match=str(path)) as caught:
        login_for(HOST, write(path, document))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_others_could_read_it(path: Path, mode: int) -> None:
    write(path, {"auths": {}})
    path.chmod(mode)
    with pytest.raises(BadConfiguration, match="others"):
        login_for(HOST, str(path))


def test_it_is_somebody_elses(path: Path) -> None:
    write(path, {"auths": {}})
    os.chown(path, 1000, 1000)
    with pytest.raises(BadConfiguration, match="others"):
        login_for(HOST, str(path))


def test_no_file_at_all(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(BadConfiguration):
        login_for(HOST, str(path))
