"""What an engine is told of a container, with the fake runc and a CRIU that only has a version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fakes.pod import FAKES, documents, make_bundle
from shim.bundle import CRIU_CONFIG
from shim.config import Config
from shim.work import Work


def make_work(folder: Path, spec: dict[str, Any] | None = None, **request: Any) -> Work:
    """A request about the container `c`, whose root file system is an overlay.

    `spec` is merged into the bundle's config.json, `request` into what the daemon would send.
    """
    for name in ("runc", "runc/fail", "runc/gate", "state", "lower", "upper", "work"):
        (folder / name).mkdir(exist_ok=True)
    steered = {CRIU_CONFIG: str(folder / "state" / "criu.conf")}
    given = {"annotations": steered, **(spec or {})}
    bundle = make_bundle(folder / "bundles" / "c", ["sleep", "1000"], given)
    options = [f"{kind}dir={folder}/{kind}" for kind in ("lower", "upper", "work")]
    settings: dict[str, str | float | bool] = {
        "BinaryName": str(FAKES / "runc.py"),
        "Root": str(folder / "runc"),
        "state": str(folder / "state"),
        "snapshots": str(folder / "snapshots"),
        "criu": fake_criu(folder),
    }
    asked: dict[str, Any] = {
        "verb": "restore",
        "id": "c",
        "namespace": "test",
        "bundle": str(bundle),
        "folder": str(folder / "state"),
        "rootfs": [{"type": "overlay", "source": "overlay", "target": "", "options": options}],
        "terminal": False,
        "config": Config(settings).as_dict(),
        "containerd": "",
        **request,
    }
    return Work.parse(json.loads(json.dumps(asked)))


def fake_criu(folder: Path, says: str = "Version: 4.2.1", status: int = 0) -> str:
    """A program that says that it is some CRIU."""
    program = folder / "criu"
    program.write_text(f"#!/bin/sh\necho '{says}'\nexit {status}\n")
    program.chmod(0o755)
    return str(program)


def runc_calls(folder: Path) -> list[list[str]]:
    """What the fake runc was asked, without its global options."""
    return [call[6:] for call in documents(folder / "runc" / "calls")]
