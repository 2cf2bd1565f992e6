"""What a pod's annotations say of its worker: one value for each concern, all of it checked.

When it is warm and what follows then (Checkpointing), what is done to it before and after
(Actions), how a restored one proves itself (Canary), and where it is registered (Registration). The
daemon reads them at Create to refuse what can never work; the engine reads them again, to do it.
"""

from __future__ import annotations

from shim.annotations import (
    AFTER_CHECKPOINT,
    CANARY,
    CANARY_BODY,
    CANARY_EXPECT,
    CANARY_TIMEOUT,
    CHECKPOINT,
    QUIESCE,
    QUIESCE_TIMEOUT,
    REGISTER,
    REGISTER_FAILURE,
    REGISTER_TIMEOUT,
    RESUME,
    RESUME_TIMEOUT,
    TABLE,
    Probe,
    fail_instead_of_cold_start,
    gpu_memory,
    is_command,
    is_local_http,
    is_plain,
    is_port,
    one_of,
    probe,
    pull_first,
    refuse,
    value,
)
from shim.errors import BadName
from shim.reference import AUTO, check_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

CONTRACT = Probe("contract", "")
# What may stand in a key or a URL; see registration/filling.py.
PLACES = ("container", "generation", "hostname", "ip", "namespace", "node", "pod", "uid")
LONGEST_WAIT = 3600.0  # seconds
LARGEST_BODY = 1 << 18  # characters; the API server takes no larger annotations, all in all
_DERIVED = f"{AUTO}-"  # begins what `auto` stands for, and others come from; snapshot/derived.py
_HEX = frozenset("0123456789abcdefABCDEF")
_ACTION = "http:PORT/PATH or exec:COMMAND"
_EXPECT = "status=N, sha256=HEX (64 digits) and match=REGEX, the last of them, with spaces between"
_BACKEND = "http:PORT/PATH, http://HOST[:PORT]/PATH, etcd:HOST:PORT/KEY, exec:COMMAND or none"


class Action:
    """A request to the worker, or a command in its container: `kind` is http or exec.

    `target` is PORT/PATH or a command line for /bin/sh.
    """

    __slots__ = ("kind", "target")

    def __init__(self, kind: str, target: str) -> None:
        self.kind = kind
        self.target = target

    @property
    def port(self) -> int:
        """Where an http action goes."""
        return int(self.target.partition("/")[0])

    @property
    def path(self) -> str:
        """What an http action asks for."""
        return "/" + self.target.partition("/")[2]

    def __str__(self) -> str:
        return f"{self.kind}:{self.target[:80]}"


class Checkpointing:
    """A snapshot that is made once the container is ready: NAME or auto, and what follows."""

    __slots__ = ("exits", "name", "ready")

    def __init__(self, name: str, ready: Probe, *, exits: bool) -> None:
        self.name = name
        self.ready = ready
        self.exits = exits

    @property
    def auto(self) -> bool:
        """Whether the name is derived from what the container is."""
        return self.name == AUTO


class Actions:
    """What is done before a snapshot and after a restore, each with its time in seconds."""

    __slots__ = ("quiesce", "quiesce_timeout", "resume", "resume_timeout")

    def __init__(
        self,
        quiesce: Action | None,
        resume: Action | None,
        quiesce_timeout: float = 60.0,
        resume_timeout: float = 30.0,
    ) -> None:
        self.quiesce = quiesce
        self.resume = resume
        self.quiesce_timeout = quiesce_timeout
        self.resume_timeout = resume_timeout


class Expectation:
    """What an answer must be: its status and, unless empty, a pattern in it and its digest."""

    __slots__ = ("match", "sha256", "status")

    def __init__(self, status: int, match: str = "", sha256: str = "") -> None:
        self.status = status
        self.match = match
        self.sha256 = sha256


class Canary:
    """The question that a restored worker must answer before it is seen; `body` None: a GET."""

    __slots__ = ("action", "body", "expected", "timeout")

    def __init__(
        self, action: Action, body: str | None, expected: Expectation, timeout: float = 10.0
    ) -> None:
        self.action = action
        self.body = body
        self.expected = expected
        self.timeout = timeout

    def __str__(self) -> str:
        return str(self.action)


class Registration:
    """Where a worker is registered: `kind` is http, https, etcd or exec.

    `target` is PORT/PATH or a URL, HOST:PORT/KEY, a command line. `must`: without it the container
    fails; otherwise it is tried again until it is done. `timeout`, in seconds, is for one attempt.
    """

    __slots__ = ("kind", "must", "target", "timeout")

    def __init__(self, kind: str, target: str, timeout: float = 10.0, *, must: bool) -> None:
        self.kind = kind
        self.target = target
        self.timeout = timeout
        self.must = must

    def __str__(self) -> str:
        return f"{self.kind}:{self.target[:80]}"


def check(annotations: Mapping[str, str]) -> None:
    """Read everything. Raises BadAnnotation that names the key, the value and what is allowed."""
    fail_instead_of_cold_start(annotations)
    pull_first(annotations)
    probe(annotations)
    checkpointing(annotations)
    actions(annotations)
    canary(annotations)
    registration(annotations)
    gpu_memory(annotations, "library")


def checkpointing(annotations: Mapping[str, str]) -> Checkpointing | None:
    """The snapshot to be made of this container, if any. Raises BadAnnotation."""
    exits = one_of(annotations, AFTER_CHECKPOINT, ("continue", "exit")) == "exit"
    name = value(annotations, CHECKPOINT)
    if name is None:
        return None
    if name.startswith(_DERIVED):
        raise refuse(CHECKPOINT, name, f"auto, or a name that does not begin with {_DERIVED}")
    if name != AUTO:
        try:
            check_name(name)
        except BadName as error:
            allowed = f"auto, or a name: {error.hint}" if error.hint else "auto, or a name"
            raise refuse(CHECKPOINT, name, allowed) from None
    return Checkpointing(name, probe(annotations) or CONTRACT, exits=exits)


def actions(annotations: Mapping[str, str]) -> Actions:
    """What is done to the worker, if anything. Raises BadAnnotation."""
    return Actions(
        _action(annotations, QUIESCE),
        _action(annotations, RESUME),
        seconds(annotations, QUIESCE_TIMEOUT),
        seconds(annotations, RESUME_TIMEOUT),
    )


def canary(annotations: Mapping[str, str]) -> Canary | None:
    """The canary of a restored worker, if there is one. Raises BadAnnotation."""
    action = _action(annotations, CANARY)
    expected = _expectation(annotations, 0 if action and action.kind == "exec" else 200)
    timeout = seconds(annotations, CANARY_TIMEOUT)
    body = value(annotations, CANARY_BODY)
    if action is None:
        return None
    if body is not None and not (action.kind == "http" and _is_body(body)):
        raise refuse(CANARY_BODY, body, f"a request's body, with {CANARY}: http:PORT/PATH")
    return Canary(action, body, expected, timeout)


def registration(annotations: Mapping[str, str]) -> Registration | None:
    """Where this container is registered; None if nowhere. Raises BadAnnotation."""
    must = one_of(annotations, REGISTER_FAILURE, ("retry", "fail")) == "fail"
    timeout = seconds(annotations, REGISTER_TIMEOUT)
    found = value(annotations, REGISTER)
    if found is None or found == "none":
        return None
    kind, colon, target = found.partition(":")
    good = {
        "http": is_local_http(target) or _is_url(target),
        "https": _is_url(target),
        "etcd": _is_etcd(target),
        "exec": is_command(target),
    }
    if not colon or not good.get(kind, False):
        raise refuse(REGISTER, found, _BACKEND)
    if kind != "exec":
        for place in places(target):
            if place not in PLACES:
                allowed = " ".join(f"{{{place}}}" for place in PLACES)
                raise refuse(REGISTER, found, f"{_BACKEND}; in braces there may be {allowed}")
    return Registration(kind, target, timeout, must=must)


def seconds(annotations: Mapping[str, str], key: str) -> float:
    """A time limit; the row's default if it is not there. Raises BadAnnotation."""
    found = value(annotations, key)
    if found is None:
        return float(next(row.default for row in TABLE if row.key == key))
    try:
        number = float(found) if found.isascii() and len(found) < 20 else 0.0
    except ValueError:
        number = 0.0
    if not 0.001 <= number <= LONGEST_WAIT:  # neither is NaN
        raise refuse(key, found, f"seconds, from 0.001 to {LONGEST_WAIT:g}")
    return number


def places(text: str) -> list[str]:
    """The words in braces in a text; an open brace without its end makes an empty one."""
    pieces = (piece.partition("}") for piece in text.split("{")[1:])
    return [word if brace else "" for word, brace, _ in pieces]


def _action(annotations: Mapping[str, str], key: str) -> Action | None:
    found = value(annotations, key)
    if found is None:
        return None
    kind, _, target = found.partition(":")
    if kind == "http" and is_local_http(target):
        return Action(kind, target)
    if kind == "exec" and is_command(target):
        return Action(kind, target)
    raise refuse(key, found, _ACTION)


def _expectation(annotations: Mapping[str, str], status: int) -> Expectation:
    found = value(annotations, CANARY_EXPECT)
    expected = Expectation(status)
    if found is None:
        return expected
    rest = found.strip()
    if not rest:
        raise refuse(CANARY_EXPECT, found, _EXPECT)
    while rest:
        name, equals, rest = rest.partition("=")
        word = rest
        if name != "match":
            word, _, rest = rest.partition(" ")
            rest = rest.lstrip(" ")
        else:
            rest = ""
        if not equals or not _expect(expected, name, word):
            raise refuse(CANARY_EXPECT, found, _EXPECT)
    return expected


def _expect(expected: Expectation, name: str, word: str) -> bool:
    """Take one word of an expectation; whether it can be taken."""
    if name == "status" and word.isascii() and word.isdecimal() and len(word) < 4:
        expected.status = int(word)
    elif name == "sha256" and len(word) == 64 and set(word) <= _HEX:
        expected.sha256 = word.lower()
    elif name == "match" and word and len(word) <= 4096 and _is_text(word):
        expected.match = word  # whether it is a pattern, the engine says: see worker/canary.py
    else:
        return False
    return True


def _is_body(text: str) -> bool:
    return len(text) <= LARGEST_BODY and _is_text(text)


def _is_text(text: str) -> bool:
    """Whether it can be encoded and be a program's argument: JSON has NUL and lone surrogates."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _is_url(text: str) -> bool:
    """Whether it is //HOST[:PORT][/PATH]: what follows `http:` in a URL."""
    host = text.removeprefix("//").partition("/")[0]
    return text.startswith("//") and is_plain(text) and "#" not in text and _is_host(host, False)


def _is_etcd(text: str) -> bool:
    host, slash, key = text.partition("/")
    return bool(slash and key) and key.isprintable() and _is_host(host, True)


def _is_host(text: str, with_port: bool) -> bool:
    """Whether it is HOST:PORT, [ADDRESS]:PORT or, unless a port must be there, HOST alone."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        good = bool(bracket) and bool(host) and set(host) <= _HEX | {":", "."}
    else:
        host, colon, port = text.partition(":")
        rest = colon + port
        good = bool(host) and all(c.isalnum() or c in "-._" for c in host) and host.isascii()
    if not rest:
        return good and not with_port
    return good and rest.startswith(":") and is_port(rest[1:])
