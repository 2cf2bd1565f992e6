"""Fixtures for tests against a real containerd: every test that takes `lane` runs on each version.

After each test everything that it made must be gone: `leaves_nothing` compares what the lane owned
before with what it owns afterwards (processes, mounts, cgroups, interfaces, sockets, descriptors,
files).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bed.dismantle import sweep
from bed.install import installed
from bed.lane import Installation, Lane, chosen_versions, opened
from drive.session import Session, driven, lower_folder
from drive.shim import Kind
from stored import forget_snapshots, ids

if TYPE_CHECKING:
    from collections.abc import Generator

CHECKOUT = Path(__file__).resolve().parents[2]
LANES = chosen_versions()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ctr: `ctr` has the test images in its private lane, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker("e2e")
    spared = [item for item in items if item.get_closest_marker("one_lane") and _older(item)]
    if spared:
        config.hook.pytest_deselected(items=spared)
        items[:] = [item for item in items if item not in set(spared)]


def _older(item: pytest.Item) -> bool:
    """Whether it runs on another containerd than the newest of those that were chosen."""
    callspec = getattr(item, "callspec", None)  # a test without parameters has none
    parameters = callspec.params if callspec is not None else {}
    return any(parameters.get(name, LANES[-1]) != LANES[-1] for name in ("lane", "private_lane"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows the end of its containerd's log, where the shim's lines are too."""
    report = yield
    for value in getattr(item, "funcargs", {}).values():
        if report.failed and isinstance(value, Lane):
            report.sections.append((f"containerd {value.version}", value.log(120)))
    return report


@pytest.fixture(scope="session")
def installation() -> Installation | None:
    """The product, installed from this checkout into the cache as a node would have it.

    THAW_TEST_INSTALLATION names the folder of other commands to test; `none`: no handler `thaw`.
    """
    chosen = os.environ.get("THAW_TEST_INSTALLATION", "")
    if chosen == "none":
        return None
    return Installation(Path(chosen)) if chosen else installed(CHECKOUT)


@pytest.fixture(scope="session", params=LANES)
def lane(request: pytest.FixtureRequest, installation: Installation | None) -> Iterator[Lane]:
    """One running containerd per version, shared by all tests; it must not be restarted."""
    sweep(Path(tempfile.gettempdir()))
    with opened(request.param, installation) as lane:
        before = lane.holdings()
        yield lane
        lane.clear()
        assert not lane.leaks(before)


@pytest.fixture(params=LANES)
def private_lane(
    request: pytest.FixtureRequest, installation: Installation | None
) -> Iterator[Lane]:
    """A containerd for one test, which may restart it; opening one takes more than a second.

    Pods have images there, and `ctr` for a test that is marked so.
    """
    ctr = request.node.get_closest_marker("ctr") is not None
    with opened(request.param, installation, layers=False, ctr=ctr) as lane:
        before = lane.holdings()
        yield lane
        lane.clear()
        forget_snapshots(lane, set())
        assert not lane.leaks(before)


@pytest.fixture(scope="session")
def lower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with busybox, for containers without containerd."""
    return lower_folder(tmp_path_factory.mktemp("lower"))


@pytest.fixture(scope="session")
def ours(installation: Installation | None) -> Kind:
    """Our shim, to be driven without containerd."""
    if installation is None:
        pytest.skip("needs the product to be installed")
    return Kind("thaw", installation.shim)


@pytest.fixture
def session(ours: Kind, lower: Path) -> Iterator[Session]:
    """Our shim driven without containerd; fails if it leaves anything."""
    with driven(ours, lower) as session:
        yield session


@pytest.fixture(autouse=True)
def leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves something in the shared lane (and remove it, for the next one)."""
    if "lane" not in request.fixturenames:
        yield
        return
    lane: Lane = request.getfixturevalue("lane")
    kept = ids(lane)
    before = lane.holdings()
    yield
    forget_snapshots(lane, kept)
    leaks = lane.leaks(before)
    if leaks:
        lane.clear()
    assert not leaks, f"left behind: {leaks}"
