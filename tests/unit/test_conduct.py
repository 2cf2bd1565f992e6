"""What annotations say of a worker, and what they must not say."""

from __future__ import annotations

import pytest

from shim import annotations as keys
from shim.annotations import TABLE
from shim.conduct import (
    actions,
    canary,
    check,
    checkpointing,
    registration,
    seconds,
)
from shim.errors import BadAnnotation

HEX = "0123456789abcdef" * 4


def test_nothing_is_asked() -> None:
    check({})
    assert checkpointing({}) is None
    assert canary({}) is None
    assert registration({}) is None
    assert registration({keys.REGISTER: "none"}) is None
    asked = actions({})
    assert (asked.quiesce, asked.resume) == (None, None)
    assert (asked.quiesce_timeout, asked.resume_timeout) == (60.0, 30.0)


def test_a_checkpoint() -> None:
    made = checkpointing({keys.CHECKPOINT: "warm"})
    assert made is not None
    assert (made.name, made.auto, made.exits, made.ready.kind) == ("warm", False, False, "contract")
    notes = {keys.CHECKPOINT: "auto", keys.AFTER_CHECKPOINT: "exit", keys.READY: "tcp:8000"}
    made = checkpointing(notes)
    assert made is not None
    assert (made.auto, made.exits, made.ready.target) == (True, True, "8000")


def test_one_container_of_several() -> None:
    notes = {f"{keys.CHECKPOINT}.a": "warm", keys.CONTAINER_NAME: "a"}
    assert checkpointing(notes) is not None
    assert checkpointing({**notes, keys.CONTAINER_NAME: "b"}) is None


def test_actions() -> None:
    asked = actions(
        {
            keys.QUIESCE: "http:8000/sleep?level=1",
            keys.RESUME: "exec:kill -USR1 1",
            keys.QUIESCE_TIMEOUT: "2.5",
        }
    )
    assert asked.quiesce is not None
    assert asked.resume is not None
    assert (asked.quiesce.port, asked.quiesce.path) == (8000, "/sleep?level=1")
    assert (asked.resume.kind, asked.resume.target) == ("exec", "kill -USR1 1")
    assert asked.quiesce_timeout == 2.5


@pytest.mark.parametrize(
    ("expect", "status", "sha256", "match"),
    [
        (None, 200, "", ""),
        ("status=204", 204, "", ""),
        (f"sha256={HEX.upper()}", 200, HEX, ""),
        ("match=a b=c ", 200, "", "a b=c"),
        (f" status=201  sha256={HEX} match=^x$", 201, HEX, "^x$"),
    ],
)
def test_what_a_canary_expects(expect: str | None, status: int, sha256: str, match: str) -> None:
    notes = {keys.CANARY: "http:8000/v1"}
    asked = canary(notes if expect is None else {**notes, keys.CANARY_EXPECT: expect})
    assert asked is not None
    found = asked.expected
    assert (found.status, found.sha256, found.match) == (status, sha256, match)


def test_a_command_succeeds_with_0() -> None:
    asked = canary({keys.CANARY: "exec:true"})
    assert asked is not None
    assert asked.expected.status == 0


@pytest.mark.parametrize(
    ("value", "kind", "target"),
    [
        ("http:8000/register", "http", "8000/register"),
        ("http://registry.infra:80/w/{pod}", "http", "//registry.infra:80/w/{pod}"),
        ("https://registry/", "https", "//registry/"),
        ("http://[fd00::1]:80", "http", "//[fd00::1]:80"),
        ("etcd:etcd.infra:2379/w/{namespace}/{pod}", "etcd", "etcd.infra:2379/w/{namespace}/{pod}"),
        ("etcd:[fd00::1]:2379//a", "etcd", "[fd00::1]:2379//a"),
        ("exec:/bin/announce", "exec", "/bin/announce"),
        ("exec:echo ${x}", "exec", "echo ${x}"),
    ],
)
def test_registrations(value: str, kind: str, target: str) -> None:
    found = registration({keys.REGISTER: value, keys.REGISTER_FAILURE: "fail"})
    assert found is not None
    assert (found.kind, found.target, found.must) == (kind, target, True)


BAD = {
    keys.CHECKPOINT: ("", "Warm", "a/b", "../x", "x" * 1000, "auto-", "auto-main-0123456789"),
    keys.AFTER_CHECKPOINT: ("", "stop"),
    keys.QUIESCE: ("", "http", "http:", "http:0/x", "http://h/x", "http:80/a b", "exec:", "tcp:1"),
    keys.RESUME: ("file:/x", "exec:\0", "http:80/\u00e9"),
    keys.QUIESCE_TIMEOUT: ("", "0", "-1", "1e9", "nan", "inf", "ten", "\u0661", "1" * 500),
    keys.RESUME_TIMEOUT: ("1s",),
    keys.CANARY_TIMEOUT: ("0",),
    keys.REGISTER_TIMEOUT: ("0",),
    keys.CANARY: ("https:443/x", "8000"),
    keys.CANARY_EXPECT: (
        *("", " ", "200", "status=", "status=2000", "sha256=ab", "match=", "a=b"),
        *("match=\0", "match=\ud800"),
    ),
    keys.REGISTER: (
        *("", "nowhere", "http:", "http:x/y", "http://", "http:///x", "http://a b/", "https:80/x"),
        *("http://user@host/", "http://h:0/", "http://h/#x", "http://[fd00::1/", "etcd:host/key"),
        *("etcd:host:2379", "etcd:host:2379/", "etcd:host:x/key", "etcd:host:2379/{what}"),
        *("etcd:host:2379/{pod", "exec: "),
    ),
    keys.REGISTER_FAILURE: ("", "ignore"),
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in BAD.items() for v in values])
def test_what_is_refused(key: str, value: str) -> None:
    """With a sentence that names the key, the value and what is allowed."""
    with pytest.raises(BadAnnotation) as refused:
        check({key: value})
    assert refused.value.message.startswith(f"{key}: {value[:80]!r}")
    assert refused.value.hint.startswith("the value is ")
    assert len(refused.value.message) < 200


def test_a_body_goes_with_a_request() -> None:
    with pytest.raises(BadAnnotation, match=keys.CANARY_BODY):
        check({keys.CANARY: "exec:true", keys.CANARY_BODY: "{}"})
    check({keys.CANARY: "http:1/", keys.CANARY_BODY: "{}"})
    check({keys.CANARY: "http:1/", keys.CANARY_BODY: "\u00e9\U0001f600"})


@pytest.mark.parametrize("body", ["\0", '{"a": "\ud800"}'])
def test_a_body_that_could_not_be_sent(body: str) -> None:
    with pytest.raises(BadAnnotation, match=keys.CANARY_BODY):
        check({keys.CANARY: "http:1/", keys.CANARY_BODY: body})


def test_defaults_are_the_tables() -> None:
    for row in TABLE:
        if row.type == "seconds":
            assert seconds({}, row.key) == float(row.default)
        elif row.default and row.key != keys.CANARY_EXPECT:
            check({row.key: row.default})
    asked = actions({})
    assert asked.quiesce_timeout == seconds({}, keys.QUIESCE_TIMEOUT)
