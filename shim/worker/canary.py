"""The canary: a question that a restored worker must answer rightly before anyone sees it.

A wrong answer, a late one or none is a failed restore. It is asked for in the pod's own network
namespace, whose loopback is open while the rest is held; see oci_hooks/hold.py.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import time

from shim.annotations import CANARY_EXPECT, refuse
from shim.conduct import Canary
from shim.errors import CanaryFailed, WorkerFailed
from shim.worker.actions import Answer, Worker, execute, request
from shim.worker.readable import excerpt

# A pattern comes from a pod and may take for ever: so it is tried by a process that can be killed.
_MATCHING = """
import re, sys
text = sys.stdin.buffer.read().decode("utf-8", "replace")
sys.exit(0 if re.search(sys.argv[1], text) else 3)
"""
_NO_MATCH = 3


def check_pattern(canary: Canary) -> None:
    """Raise BadAnnotation unless `match` is a pattern: before anything is restored."""
    pattern = canary.expected.match
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        allowed = f"match=REGEX as Python's re has them: {error}"
        raise refuse(CANARY_EXPECT, f"match={pattern}", allowed) from None


def prove(canary: Canary, worker: Worker) -> None:
    """Ask, and compare. Raises CanaryFailed with what was wrong about the answer."""
    expected = canary.expected
    ends = time.monotonic() + canary.timeout
    # Started now, its interpreter is there when the answer is.
    matching = _start(expected.match) if expected.match else None
    try:
        answer = _ask(canary, worker)
        if answer.status != expected.status:
            raise _wrong(canary, f"status {answer.status} instead of {expected.status}", answer)
        if expected.sha256:
            digest = hashlib.sha256(answer.body).hexdigest()
            if digest != expected.sha256:
                raise _wrong(canary, f"sha256 {digest} instead of {expected.sha256}", answer)
        if matching is not None and not _matches(matching, answer.body, canary, ends):
            raise _wrong(canary, f"does not match {excerpt(expected.match.encode())}", answer)
    finally:
        if matching is not None:
            matching.kill()
            matching.communicate()


def _ask(canary: Canary, worker: Worker) -> Answer:
    action, body = canary.action, canary.body
    try:
        if action.kind == "exec":
            return execute(action.target, worker, canary.timeout)
        return request(
            action,
            worker,
            canary.timeout,
            method="GET" if body is None else "POST",
            body=None if body is None else body.encode(),
            awaited=canary.expected.status,
        )
    except WorkerFailed as error:
        raise CanaryFailed(f"canary {error.message}", hint=error.hint) from error


def _start(pattern: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-IS", "-c", _MATCHING, pattern]
    out = subprocess.DEVNULL
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=out, stderr=out)


def _matches(process: subprocess.Popen[bytes], body: bytes, canary: Canary, ends: float) -> bool:
    try:
        process.communicate(body, timeout=max(ends - time.monotonic(), 0.001))
    except subprocess.TimeoutExpired:
        raise CanaryFailed(
            f"canary {canary.action}: not compared within {canary.timeout:g} s",
            hint=f"see match= in {CANARY_EXPECT}",
        ) from None
    if process.returncode not in (0, _NO_MATCH):
        raise CanaryFailed(f"canary {canary.action}: cannot compare the answer")
    return process.returncode == 0


def _wrong(canary: Canary, what: str, answer: Answer) -> CanaryFailed:
    said = excerpt(answer.body)
    return CanaryFailed(
        f"canary {canary.action}: {what}{f': {said}' if said else ''}",
        hint=f"see {CANARY_EXPECT}",
    )
