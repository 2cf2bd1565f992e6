"""The audit log: whole lines, of one object each, whatever is in them; and never in the way."""

from __future__ import annotations

import json
import os
import re
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from shim import audit, log
from shim.config import Config


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log" / "thaw" / "audit.log"


@pytest.fixture
def config(path: Path) -> Config:
    return Config({"audit.log": str(path)})


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the daemon's log was told."""
    told: list[str] = []
    monkeypatch.setattr(audit, "_warned", False)
    monkeypatch.setattr(log, "warning", lambda text, **fields: told.append(fields["error"]))
    return told


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_line(config: Config, path: Path) -> None:
    audit.record(config, "restore", who="pod ns/web", name="m", reason="", container="c1")
    audit.record(config, "remove", name="m")
    first, second = lines(path)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {"event": "restore", "who": "pod ns/web", "name": "m", "container": "c1"}
    assert second["who"].startswith(f"uid {os.getuid()}")


def test_the_file_and_its_folder_are_roots(config: Config, path: Path) -> None:
    audit.record(config, "create")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize(
    "text", ['a\nb"}\n{"event":"create"', "\x1b[2J\x00", "\x7f\u009b\u2028", "\ud800", "x" * 5000]
)
def test_nothing_in_a_value_leaves_its_line(config: Config, path: Path, text: str) -> None:
    audit.record(config, "refuse", name=text)
    data = path.read_bytes()
    assert data.count(b"\n") == 1
    assert data.endswith(b"\n")
    assert re.fullmatch(rb"[ -~]*", data[:-1].replace(b"\x7f", b""))
    assert lines(path)[0]["name"] == text[:1024]


def test_lines_of_many_do_not_mix(config: Config, path: Path) -> None:
    def many() -> None:
        for _ in range(50):
            audit.record(config, "pull", who="pod", reason="r" * 900)

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line["reason"] for line in lines(path)] == ["r" * 900] * 200


def test_none_is_wanted(tmp_path: Path, warnings: list[str]) -> None:
    audit.record(Config({"audit.log": ""}), "create")
    assert warnings == []
    assert list(tmp_path.iterdir()) == []


def make_link(path: Path) -> None:
    path.symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, make_link])
def test_what_cannot_be_written_is_said_once(
    config: Config, path: Path, warnings: list[str], make: Any
) -> None:
    path.parent.mkdir(parents=True)
    make(path)
    audit.record(config, "create")
    audit.record(config, "create")
    assert len(warnings) == 1
    assert not (path.parent / "elsewhere").exists()


@pytest.mark.parametrize("name", ["/dev/null/audit.log", "/dev/full", "/tmp/a\0b"])
def test_places_that_are_none(name: str, warnings: list[str]) -> None:
    audit.record(Config({"audit.log": name}), "create")
    assert len(warnings) == 1


def test_who_became_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_login", lambda: 1000)
    monkeypatch.setenv("SUDO_USER", "alice")
    assert audit.operator() == f"uid {os.getuid()}, sudo alice, login 1000"
    monkeypatch.delenv("SUDO_USER")
    monkeypatch.setattr(audit, "_login", lambda: None)
    assert audit.operator() == f"uid {os.getuid()}"


@pytest.mark.parametrize(("noted", "login"), [("1000", 1000), ("4294967295", None), ("", None)])
def test_the_kernels_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted: str, login: int | None
) -> None:
    (tmp_path / "loginuid").write_text(noted)
    monkeypatch.setattr(audit, "_LOGIN", str(tmp_path / "loginuid"))
    assert audit._login() == login
    monkeypatch.setattr(audit, "_LOGIN", str(tmp_path / "none"))
    assert audit._login() is None
