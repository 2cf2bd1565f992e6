"""Whose memory a pod may read, and what it may make a node fetch."""

from __future__ import annotations

import pytest

from shim import reference
from shim.config import Config
from shim.errors import Denied
from shim.snapshot import policy

OWN, ANY = Config(), Config({"policy.namespaces": "any"})
HEX = "a" * 64


@pytest.mark.parametrize(
    ("config", "made_in", "live", "shared", "good"),
    [
        (OWN, "team", "team", False, True),
        (OWN, "team", "other", False, False),
        (OWN, "team", "other", True, True),
        (ANY, "team", "other", False, True),
        (OWN, "", "", False, True),
        (OWN, "", "team", False, False),
        (OWN, "team", "", False, False),
        (OWN, "team", "Team", False, False),
    ],
)
def test_namespaces(config: Config, made_in: str, live: str, shared: bool, good: bool) -> None:
    if good:
        policy.check_namespace(config, made_in, live, shared)
        return
    with pytest.raises(Denied) as caught:
        policy.check_namespace(config, made_in, live, shared)
    assert "thaw tag --shared" in caught.value.hint
    assert "policy.namespaces" in caught.value.hint


@pytest.mark.parametrize("by", ["annotation", "auto"])
@pytest.mark.parametrize(
    ("live", "shared", "good"),
    [("team", False, True), ("other", False, False), ("other", True, True)],
)
def test_what_a_pod_has_made_of_itself(by: str, live: str, shared: bool, good: bool) -> None:
    """Any pod could have taken a name that others restore: an operator has to look at it first."""
    if good:
        policy.check_namespace(ANY, "team", live, shared, by)
        return
    with pytest.raises(Denied, match="nobody but a pod has asked for it") as caught:
        policy.check_namespace(ANY, "team", live, shared, by)
    assert "thaw tag --shared" in caught.value.hint
    assert "policy.namespaces" not in caught.value.hint, "that would not help"


@pytest.mark.parametrize("by", ["thaw checkpoint", "containerd", ""])
def test_what_an_operator_has_made(by: str) -> None:
    policy.check_namespace(ANY, "team", "other", False, by)


def test_what_a_namespace_is_called() -> None:
    with pytest.raises(Denied) as caught:
        policy.check_namespace(OWN, "team", "", False)
    said = "the snapshot was made in namespace team, the pod is in no namespace"
    assert caught.value.message == said


@pytest.mark.parametrize(
    ("allowed", "text", "good"),
    [
        ("", "registry.example/team/worker:1", False),
        ("registry.example/team", "registry.example/team/worker:1", True),
        ("other.example registry.example", "registry.example/team/worker:1", True),
        ("registry.example/team", f"registry.example/team@sha256:{HEX}", True),
        ("registry.example/team", "registry.example/teams/worker:1", False),
        ("registry.example", "registry.example.evil/team/worker:1", False),
        ("registry.example", "registry.example:5000/worker:1", False),
        ("registry.example/", f"worker@sha256:{HEX}", False),
    ],
)
def test_pulls(allowed: str, text: str, good: bool) -> None:
    config, wanted = Config({"registry.allow": allowed}), reference.parse(text)
    if good:
        policy.allowed_to_pull(config, wanted)
        return
    with pytest.raises(Denied, match="may not be pulled") as caught:
        policy.allowed_to_pull(config, wanted)
    assert "registry.allow" in caught.value.hint
