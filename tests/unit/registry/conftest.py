"""A misbehaving registry, two stores, and no waiting, for attempts or for the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import registry as fake
from fakes.artifacts import Artifact, files, made
from fakes.registry import Registry

from shim.config import Config
from shim.reference import Reference, parse
from shim.registry import attempts, push
from shim.snapshot.snapshot import Snapshot
from shim.snapshot.store import Store


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "WAITS", (0.0, 0.001, 0.001))
    monkeypatch.setattr("os.fsync", lambda fd: None)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with fake.running() as registry:
        yield registry


@pytest.fixture
def config(registry: Registry, tmp_path: Path) -> Config:
    return Config(
        {
            "registry.plain_http": registry.host,
            "registry.auth": str(tmp_path / "auth.json"),
            "audit.log": str(tmp_path / "audit.log"),
        }
    )


@pytest.fixture
def here(tmp_path: Path) -> Store:
    """The store that things are pushed from."""
    return Store(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> Store:
    """The store that things are pulled into."""
    return Store(tmp_path / "there")


@pytest.fixture
def reference(registry: Registry) -> Reference:
    return parse(f"{registry.host}/team/worker:1")


@pytest.fixture
def snapshot(here: Store) -> Snapshot:
    return made(here)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A snapshot that was pushed once, for all tests."""
    snapshot = made(Store(tmp_path_factory.mktemp("stores") / "first"))
    with fake.running() as registry:
        config = Config({"registry.plain_http": registry.host, "audit.log": ""})
        digest = push(snapshot, parse(f"{registry.host}/team/worker:1"), config)
        found = files(snapshot.path)
        found.pop("blobs/lock", None)  # of sealing, which what is pulled does not need
        return Artifact(digest, registry.blobs, registry.manifests, found)


@pytest.fixture
def pushed(artifact: Artifact, registry: Registry) -> str:
    """The digest of an artifact that the registry has."""
    registry.blobs.update(artifact.blobs)
    registry.manifests.update(artifact.manifests)
    return artifact.digest
