"""io_uring is denied in any profile, the environment gets what it lacks; twice is as once."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.gpu.spec import (
    ENVIRONMENT,
    IO_URING,
    compared,
    denied,
    deny_io_uring,
    make_checkpointable,
    set_environment,
)

CHECKOUT = Path(__file__).resolve().parents[3]
DEAR = ("collections", "contextlib", "dataclasses", "enum", "functools", "json", "re", "typing")
ALLOW, ERRNO, KILL = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"
OURS = {"names": list(IO_URING), "action": ERRNO, "errnoRet": 38}
READ = {"names": ["read"], "action": ALLOW}


def rule(action: str, *names: str, **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": action, **more}


def profile(default: str, *rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"defaultAction": default, "syscalls": list(rules), **more}


READ_WRITE = rule(ALLOW, "read", "write")
STERN = rule(KILL, *IO_URING, "reboot")
ONE = rule(KILL, IO_URING[0])


def test_without_a_profile() -> None:
    spec: dict[str, Any] = {"linux": {"namespaces": []}}
    deny_io_uring(spec)
    made = spec["linux"].pop("seccomp")
    assert spec == {"linux": {"namespaces": []}}
    assert (made["defaultAction"], made["syscalls"]) == (ALLOW, [OURS])
    if os.uname().machine == "x86_64":  # 32-bit programs are not killed
        assert {"SCMP_ARCH_X86_64", "SCMP_ARCH_X86"} <= set(made["architectures"])


def test_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = os.uname()
    other = os.uname_result((*machine[:4], "riscv64"))
    monkeypatch.setattr(os, "uname", lambda: other)
    assert denied(None) == profile(ALLOW, OURS)


@pytest.mark.parametrize(
    ("before", "rules"),
    [
        # What is denied with EPERM, as by containerd's own, is denied with ENOSYS.
        (profile(ERRNO, READ), [READ, OURS]),
        (profile(ERRNO, READ, defaultErrnoRet=1), [READ, OURS]),
        (profile(ALLOW, READ, rule(ERRNO, *IO_URING, errnoRet=1)), [READ, OURS]),
        # What is allowed, as by older ones.
        (
            profile(ERRNO, rule(ALLOW, "read", *IO_URING, "write")),
            [READ_WRITE, OURS],
        ),
        (profile(KILL, rule(ALLOW, *IO_URING), READ), [READ, OURS]),
        (
            profile(KILL, rule(ALLOW, IO_URING[0]), READ),
            [READ, rule(ERRNO, IO_URING[0], errnoRet=38)],
        ),
        (profile(ALLOW, rule("SCMP_ACT_NOTIFY", *IO_URING)), [OURS]),
        (profile(ALLOW, rule(KILL, *IO_URING, args=[{"index": 0}])), [OURS]),
        (profile("SCMP_ACT_LOG", READ), [READ, OURS]),
        # What is dealt with more sternly stays so.
        (profile(KILL, READ), [READ]),
        (profile("SCMP_ACT_TRAP", READ), [READ]),
        (profile(ALLOW, STERN), [STERN]),
        (
            profile(ALLOW, ONE),
            [ONE, rule(ERRNO, *IO_URING[1:], errnoRet=38)],
        ),
        # What is denied so already.
        (profile(ERRNO, READ, defaultErrnoRet=38), [READ]),
        (profile(ERRNO, rule(ALLOW, "read", *IO_URING), defaultErrnoRet=38), [READ]),
        # Lists that are not there.
        ({"defaultAction": ALLOW}, [OURS]),
        ({"defaultAction": ALLOW, "syscalls": None}, [OURS]),
        (profile(ALLOW, {"action": ALLOW, "names": None}), [OURS]),
    ],
)
def test_a_profile(before: dict[str, Any], rules: list[dict[str, Any]]) -> None:
    untouched = copy.deepcopy(before)
    after = denied(before)
    assert after == {**before, "syscalls": rules}
    assert before == untouched
    assert denied(after) == after


NAMES = st.lists(st.sampled_from([*IO_URING, "read", "write"]), max_size=5, unique=True)
ACTIONS = st.sampled_from([ALLOW, ERRNO, KILL, "SCMP_ACT_TRAP", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"])
RULES = st.builds(lambda action, names: rule(action, *names), ACTIONS, NAMES)
PROFILES = st.builds(
    lambda default, rules, told: profile(default, *rules, defaultErrnoRet=told),
    ACTIONS,
    st.lists(RULES, max_size=4),
    st.sampled_from([1, 38]),
)


@given(PROFILES)
def test_any_profile(before: dict[str, Any]) -> None:
    after = denied(before)
    assert denied(after) == after
    let = (ALLOW, "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
    for name in IO_URING:
        actions = [r["action"] for r in after["syscalls"] if name in r["names"]]
        assert not set(actions) & set(let)
        assert actions or after["defaultAction"] not in let
    for name in ("read", "write"):
        assert [r["action"] for r in after["syscalls"] if name in r["names"]] == [
            r["action"] for r in before["syscalls"] if name in r["names"]
        ]


def test_what_profiles_are_compared_by() -> None:
    assert compared(None) is compared({}) is compared(denied(None)) is None
    theirs = profile(ERRNO, rule(ALLOW, "read", *IO_URING))
    assert compared(theirs) == compared(denied(theirs)) == denied(theirs)
    assert compared(theirs) != compared(profile(ERRNO, rule(ALLOW, "write")))


def test_the_environment() -> None:
    spec: dict[str, Any] = {"process": {"cwd": "/", "env": ["A=b", "NCCL_P2P_DISABLE=0", "C"]}}
    set_environment(spec)
    assert spec == {
        "process": {
            "cwd": "/",
            "env": [
                *("A=b", "NCCL_P2P_DISABLE=0", "C", "NCCL_CUMEM_ENABLE=0", "NCCL_NVLS_ENABLE=0"),
                *("NCCL_IB_DISABLE=1", "TORCH_NCCL_ENABLE_MONITORING=0"),
            ],
        }
    }


def test_a_pod_can_set_nothing() -> None:
    name = ENVIRONMENT[0][0]
    spec: dict[str, Any] = {"process": {"env": [f"{name}="]}}
    set_environment(spec)
    assert [entry for entry in spec["process"]["env"] if entry.startswith(name)] == [f"{name}="]


@pytest.mark.parametrize("gpus", [True, False])
@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"linux": None, "process": None},
        {"linux": {"seccomp": None}, "process": {"env": None}},
        {"linux": {"seccomp": profile(ERRNO, READ)}, "process": {"env": ["A=b"]}},
    ],
)
def test_done_twice(spec: dict[str, Any], gpus: bool) -> None:
    spec = copy.deepcopy(spec)
    make_checkpointable(spec, gpus=gpus)
    once = copy.deepcopy(spec)
    make_checkpointable(spec, gpus=gpus)
    assert spec == once
    env = (spec.get("process") or {}).get("env") or []
    assert ("NCCL_CUMEM_ENABLE=0" in env) == gpus
    assert OURS in spec["linux"]["seccomp"]["syscalls"]


def test_lists_that_others_hold_are_left_alone() -> None:
    env, rules = ["A=b"], [READ]
    spec: dict[str, Any] = {
        "process": {"env": env},
        "linux": {"seccomp": {"defaultAction": ERRNO, "syscalls": rules}},
    }
    make_checkpointable(spec, gpus=True)
    assert (env, rules) == (["A=b"], [READ])


def test_what_it_costs_to_import() -> None:
    """Both are for the daemon, which every pod has: see test_imports.py."""
    program = (
        f"import sys; sys.path[:0] = [{str(CHECKOUT)!r}]; from shim.gpu import given, spec;"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-c", program], capture_output=True, text=True, check=True
    )
    assert not {*DEAR, "pynvml", "shim.gpu.nvml"} & set(done.stdout.split())
