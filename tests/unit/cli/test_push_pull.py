"""`thaw push` and `thaw pull`: what they print, and where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import registry as fake
from fakes.artifacts import files, made
from fakes.registry import Registry, Request

from shim.cli import exits, main
from shim.snapshot.store import Store


@pytest.fixture
def registry() -> Iterator[Registry]:
    with fake.running() as registry:
        yield registry


def configured(folder: Path, store: str, registry: Registry) -> list[str]:
    path = folder / f"{store}.toml"
    path.write_text(
        f'snapshots = "{folder / store}"\naudit.log = ""\n'
        f'registry.auth = ""\nregistry.plain_http = "{registry.host}"\n'
    )
    return ["--config", str(path)]


def test_there_and_back(
    tmp_path: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = made(Store(tmp_path / "here"))
    here, there = (configured(tmp_path, name, registry) for name in ("here", "there"))
    where = f"{registry.host}/team/worker:1"

    assert main(["push", "worker", where, *here]) == 0
    out, err = capsys.readouterr()
    assert out == f"{snapshot.id}  {snapshot.digest}\n"
    assert "iB in " in err

    assert main(["pull", where, "mine", "-o", "json", "--quiet", *there]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert err == ""
    assert told.keys() == {"digest", "id", "bytes", "seconds"}
    assert told["digest"] == snapshot.digest
    store = Store(tmp_path / "there")
    assert store.names()["mine"] == told["id"]
    assert files(store.path_of(told["id"])) == files(snapshot.path)
    assert told["bytes"] == sum(map(len, registry.blobs.values()))


def refuse(request: Request) -> bool:
    request.answer(403)
    return True


def test_errors_have_their_statuses(
    tmp_path: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    made(Store(tmp_path / "here"))
    here = configured(tmp_path, "here", registry)
    assert main(["pull", f"{registry.host}/team/worker:none", *here]) == exits.MISSING
    assert main(["push", "none", f"{registry.host}/team/worker:1", *here]) == exits.MISSING
    assert main(["push", "worker", "mine", *here]) == exits.USAGE
    assert main(["pull", "mine", *here]) == exits.USAGE
    registry.play = refuse
    assert main(["push", "worker", f"{registry.host}/team/worker:1", *here]) == exits.UNREACHABLE
    err = capsys.readouterr().err
    assert "thaw push: " in err
    assert "403" in err
