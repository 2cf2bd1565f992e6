"""Pods whose snapshot is in a registry: pulled by hand, before they start, or beside them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from asking import asking, audited, boots_cold, comes_back
from bed import registry
from bed.fetch import criu
from bed.lane import Lane
from gate import configured
from stored import exists, ids
from workers import Told, ask, boot, checkpoint, shim_lines, wait_until

pytestmark = [pytest.mark.one_lane]


class Pushed(NamedTuple):
    """A snapshot that is in a registry, and in no store."""

    registry: registry.Registry
    digest: str
    told: Told  # what its worker said before

    @property
    def host(self) -> str:
        """HOST:PORT."""
        return self.registry.host

    @property
    def tag(self) -> str:
        return f"{self.host}/team/worker:1"


@pytest.fixture(scope="module")
def pushed(lane: Lane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    with registry.running(tmp_path_factory.mktemp("bed") / "registry") as running:
        host = running.host
        with lane.pod("worker") as pod:
            container = boot(pod)
            told = ask(container)
            checkpoint(lane, container, "worker")
        with asked(lane, host):
            done = lane.thaw("push", "worker", f"{host}/team/worker:1", "-o", "json")
        lane.thaw("rm", "worker")
        assert ids(lane) == set()
        yield Pushed(running, json.loads(done.stdout)["digest"], told)


@contextmanager
def asked(lane: Lane, host: str, allow: str = "") -> Iterator[None]:
    """That registry is asked without TLS; pods may have pulled what begins with `allow`."""
    with configured(lane, criu(), f'[registry]\nplain_http = "{host}"\nallow = "{allow}"\n'):
        yield


def test_pulled_by_hand(lane: Lane, pushed: Pushed) -> None:
    with asked(lane, pushed.host):
        lane.thaw("pull", pushed.tag, "mine")
    listed = lane.thaw("ls").stdout
    assert pushed.tag in listed
    assert pushed.digest.removeprefix("sha256:")[:12] in listed
    # Pods may have nothing pulled here, and need not: it is there.
    comes_back(lane, pushed.tag, pushed.told)
    comes_back(lane, "mine", pushed.told)
    comes_back(lane, f"mine@{pushed.digest}", pushed.told)


def test_pulled_before_the_pod_starts(lane: Lane, pushed: Pushed) -> None:
    with asked(lane, pushed.host, f"{pushed.host}/team"):
        comes_back(lane, pushed.tag, pushed.told, pull="wait")
    line = audited(lane, "pull")[-1]
    assert (line["name"], line["digest"], line["outcome"]) == (pushed.tag, pushed.digest, "done")
    assert line["who"] == "pod default/asking"


def test_pulled_by_its_digest(lane: Lane, pushed: Pushed) -> None:
    name = f"{pushed.host}/team/worker@{pushed.digest}"
    with asked(lane, pushed.host, f"{pushed.host}/team/worker"):
        comes_back(lane, name, pushed.told, pull="wait")
    assert json.loads(lane.thaw("show", name, "-o", "json").stdout)["digest"] == pushed.digest


def test_pulled_while_the_first_pod_boots_cold(lane: Lane, pushed: Pushed) -> None:
    with asked(lane, pushed.host, f"{pushed.host}/team"):
        with asking(lane, pushed.tag) as container:
            container.wait_for_log("booted")
            wait_until(lambda: "pulled" in messages(lane, container.id), "the pull")
            assert ask(container).token != pushed.told.token
        comes_back(lane, pushed.tag, pushed.told)


def test_a_pod_that_is_over_before_its_pull(lane: Lane, pushed: Pushed) -> None:
    """Nothing comes of the pull: the next one begins anew."""
    with asked(lane, pushed.host, f"{pushed.host}/team"):
        with pushed.registry.frozen(), asking(lane, pushed.tag) as container:
            container.wait_for_log("booted")
        assert not exists(lane, pushed.tag)
        comes_back(lane, pushed.tag, pushed.told, pull="wait")


def test_pods_have_pulled_only_what_the_operator_allows(lane: Lane, pushed: Pushed) -> None:
    with asked(lane, pushed.host, f"{pushed.host}/team/work"):  # no whole word of it
        for when in ("wait", "background"):
            said = boots_cold(lane, pushed.tag, "Denied", pull=when)
            assert pushed.tag in said
            line = audited(lane, "refuse")[-1]
            assert (line["name"], line["reason"]) == (pushed.tag, "Denied")
            assert (line["pod"], line["outcome"]) == ("asking", "cold boot")
    assert ids(lane) == set()


def test_never_pulled(lane: Lane, pushed: Pushed) -> None:
    with asked(lane, pushed.host, pushed.host):
        boots_cold(lane, pushed.tag, "NoSuchSnapshot", pull="never")
    assert ids(lane) == set()


def test_a_tag_that_the_registry_has_not(lane: Lane, pushed: Pushed) -> None:
    with asked(lane, pushed.host, pushed.host):
        boots_cold(lane, f"{pushed.host}/team/worker:2", "NoSuchSnapshot", pull="wait")
    assert audited(lane, "pull")[-1]["outcome"] == "NoSuchSnapshot"


def test_no_registry_there(lane: Lane) -> None:
    """The pod does not wait for it until the kubelet's patience is over."""
    with socket.socket() as taken:  # nobody else gets its port, and nobody listens there
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        with asked(lane, host, host):
            said = boots_cold(lane, f"{host}/team/worker:1", "RegistryFailed", pull="wait")
            done = lane.thaw("pull", f"{host}/team/worker:1", check=False)
    assert "refused" in said
    assert done.returncode == 8
    assert "Traceback" not in done.stderr
    assert audited(lane, "pull")[-1]["outcome"] == "RegistryFailed"


def messages(lane: Lane, container: str) -> list[str]:
    return [line.message for line in shim_lines(lane, container)]
