"""Which hooks a restore must not repeat, and which mount what no spec explains."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from shim.gpu.hooks import hides_parameters, mounting, without_mounting

LEGACY = {"path": "/usr/bin/nvidia-container-runtime-hook", "args": ["x", "prestart"]}
CTR = {
    "path": "/usr/bin/containerd",
    "args": ["containerd", "oci-hook", "--", "/usr/bin/nvidia-container-cli", "configure"],
}
CDI = {"path": "/usr/bin/nvidia-cdi-hook", "args": ["nvidia-cdi-hook", "update-ldcache"]}
PARAMS = "disable-device-node-modification"
OTHERS = {"path": "/usr/libexec/oci/trace", "args": ["trace", "--for=nvidia"]}


def with_hooks(**stages: Any) -> dict[str, Any]:
    return {"hooks": stages, "process": {}}


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"hooks": None},
        with_hooks(prestart=None),
        with_hooks(prestart=[], createRuntime=[OTHERS]),
        with_hooks(createContainer=[CDI], poststop=[LEGACY]),
    ],
)
def test_none_mounts(spec: dict[str, Any]) -> None:
    assert mounting(spec) == []
    assert without_mounting(spec) is spec


@pytest.mark.parametrize("stage", ["prestart", "createRuntime"])
def test_those_that_mount(stage: str) -> None:
    spec = with_hooks(**{stage: [LEGACY, OTHERS, CTR], "createContainer": [CDI], "poststop": None})
    before = copy.deepcopy(spec)
    assert mounting(spec) == [LEGACY["path"], CTR["path"]]
    left = without_mounting(spec)
    assert spec == before
    assert left == with_hooks(**{stage: [OTHERS], "createContainer": [CDI], "poststop": []})
    assert mounting(left) == []


def test_the_parameters() -> None:
    args = ["nvidia-cdi-hook", PARAMS]
    assert hides_parameters(with_hooks(createContainer=[CDI, {**CDI, "args": args}]))
    old = {"path": "/usr/bin/nvidia-ctk", "args": ["nvidia-ctk", "hook", PARAMS]}
    assert hides_parameters(with_hooks(createContainer=[old]))
    for none in ({}, with_hooks(createContainer=[CDI]), with_hooks(poststart=[old])):
        assert not hides_parameters(none)
    assert not hides_parameters(with_hooks(createContainer=[{**OTHERS, "args": args}]))
