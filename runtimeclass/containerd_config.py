"""Adds the handler `thaw` to a node's containerd configuration, and takes it out again.

containerd 2.x whose main file is of version 3 gets a drop-in file and, if need be, an import of it.
On 1.x, and on 2.x with a main file of version 2, an imported file would silently take the place of
the node's whole CRI section (tried with 1.6.20 and 2.1.9): there a marked block is added to the
main file.

Before anything is changed containerd itself is asked (`containerd config dump`) whether it would
then run with the same configuration as before, plus our handler. The main file is backed up at each
change. Needs tomlkit, which keeps the file's own layout; install.sh has it in Thaw's environment.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tomlkit
from tomlkit.exceptions import TOMLKitError

TEMPLATE = Path(__file__).with_name("containerd-2.toml")
BEGIN = "# --- thaw: begin (written by install.sh, removed by uninstall.sh)"
END = "# --- thaw: end"
SECTIONS = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
DEFAULT_CONFIG = "/etc/thaw/config.toml"


class Refused(Exception):
    """The configuration cannot be changed safely; the text says why and what to do."""


class Node(NamedTuple):
    """What is configured, and with what."""

    main: Path  # /etc/containerd/config.toml
    drop_in: Path  # /etc/containerd/conf.d/thaw.toml
    thaw_config: str  # for ConfigPath
    containerd: str  # the executable

    @property
    def text(self) -> str:
        """The main file, or nothing."""
        return self.main.read_text() if self.main.exists() else ""

    def major(self) -> int:
        """containerd's major version."""
        words = _output([self.containerd, "--version"]).split()
        numbers = [word for word in words if word.lstrip("v")[:1].isdigit()]
        return int(numbers[0].lstrip("v").split(".")[0])


class Change(NamedTuple):
    """What the main file and the drop-in would hold; None: no such file."""

    main: str | None
    drop_in: str | None


def add(node: Node) -> Change:
    """The configuration with our handler."""
    text = without_block(node.text)
    version = _version(text, node.major())
    if version == 3:
        return Change(
            _with_import(text, node.drop_in, node.main.parent), handler_text(3, node.thaw_config)
        )
    named = _runtimes(tomllib.loads(text))
    if "thaw" in named:
        raise Refused(f"{node.main} already has a handler thaw that is not ours (remove it first)")
    head = text.rstrip("\n") + "\n\n" if text else "version = 2\n\n"
    known = _runtimes(_dump(node, Change(text, None)))
    built_in = {name: table for name, table in known.items() if name not in named}
    tables = handler_text(version, node.thaw_config, head="") + _spelled_out(built_in, version)
    return Change(f"{head}{BEGIN}\n{tables}{END}\n", None)


def remove(node: Node) -> Change:
    """The configuration without our handler."""
    text = without_block(node.text)
    ours = _with_import("", node.drop_in, node.main.parent)
    if text in (ours, "version = 2\n", ""):
        return Change(None, None)  # there was no main file before us
    document = tomlkit.parse(text.replace(_import_line(node.drop_in), ""))
    imports = document.get("imports", [])
    if str(node.drop_in) in imports:
        imports.remove(str(node.drop_in))
    return Change(tomlkit.dumps(document), None)


def handler_text(version: int, thaw_config: str, head: str = "version = 3\n\n") -> str:
    """Our handler's tables, for a file of this version."""
    body = TEMPLATE.read_text().partition("version = 3\n\n")[2]
    return head + body.replace(SECTIONS[3], SECTIONS[version]).replace(DEFAULT_CONFIG, thaw_config)


def _spelled_out(runtimes: dict[str, Any], version: int) -> str:
    """The tables of handlers that containerd has by default, but only while none is named."""
    text = ""
    for name, table in runtimes.items():
        path = f'plugins."{SECTIONS[version]}".containerd.runtimes.{name}'
        plain = {key: value for key, value in table.items() if key != "options"}
        text += f"\n# containerd's own default, which naming a handler would take away\n[{path}]\n"
        text += tomlkit.dumps(plain)
        text += f"\n[{path}.options]\n{tomlkit.dumps(table.get('options', {}))}"
    return text


def without_block(text: str) -> str:
    """The text without our marked block."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END + "\n")
    if begin and not end:
        raise Refused(f"the line {END!r} is missing (restore the file from its backup)")
    return before.rstrip("\n") + "\n" + after if begin else text


def apply(node: Node, change: Change, dry_run: bool) -> list[str]:
    """Write what differs, after containerd has agreed; return what was done (or would be)."""
    steps = _differences(node, change)
    if steps and not dry_run:
        check(node, change)
        if change.main != (node.text or None):
            _back_up(node.main)
            _write(node.main, change.main)
        _write(node.drop_in, change.drop_in)
    return steps


def check(node: Node, change: Change) -> None:
    """Refuse a change after which containerd would run with anything else changed."""
    before, after = _dump(node, Change(node.text or None, _read(node.drop_in))), _dump(node, change)
    for dump in (before, after):
        dump.pop("imports", None)
        _runtimes(dump).pop("thaw", None)
    if before != after:
        raise Refused(
            f"containerd would read more of {node.main} differently than the handler thaw "
            f"(add what --print-containerd prints by hand)"
        )


def systemd_cgroup(node: Node) -> bool:
    """Whether the node's runc handler uses systemd's cgroups; Thaw has to do the same."""
    dump = _dump(node, Change(node.text or None, _read(node.drop_in)))
    return bool(_runtimes(dump).get("runc", {}).get("options", {}).get("SystemdCgroup"))


def _dump(node: Node, change: Change) -> dict[str, Any]:
    """What containerd would run with; the drop-in is read from a copy."""
    with tempfile.TemporaryDirectory(prefix="thaw-containerd-") as folder:
        drop_in = Path(folder, "drop-in.toml")
        # An absent main file means containerd's own defaults, as does one with a version only.
        text = change.main or f"version = {2 if node.major() < 2 else 3}\n"
        if change.drop_in is not None:
            drop_in.write_text(change.drop_in)
            text = text.replace(str(node.drop_in), str(drop_in))
            text = _with_import(text, drop_in, node.main.parent)
        # Beside the real one, if that exists, as imports may be relative to it.
        beside = node.main.parent if node.main.exists() else folder
        with tempfile.NamedTemporaryFile("w", dir=beside, prefix=".thaw-check-") as main:
            main.write(text)
            main.flush()
            command = [node.containerd, "--config", main.name, "config", "dump"]
            return tomllib.loads(_output(command))


def _version(text: str, major: int) -> int:
    if not text.strip():
        return 3 if major >= 2 else 2
    version = int(tomllib.loads(text).get("version", 1))
    if version not in SECTIONS:
        raise Refused(f"configuration version {version} (bring it to 2: containerd config migrate)")
    return version


def _with_import(text: str, drop_in: Path, folder: Path) -> str:
    document = tomlkit.parse(text or "version = 3\n")
    imports = document.get("imports", [])
    if any(fnmatch.fnmatch(str(drop_in), str(folder / pattern)) for pattern in imports):
        return tomlkit.dumps(document)
    if "imports" in document:
        imports.append(str(drop_in))
        return tomlkit.dumps(document)
    # Keys of the document itself stand before its first table: this one directly after the version.
    lines = tomlkit.dumps(document).splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if line.lstrip().startswith("version"))
    return "".join([*lines[: at + 1], _import_line(drop_in), *lines[at + 1 :]])


def _import_line(drop_in: Path) -> str:
    return f'imports = ["{drop_in}"]  # thaw\n'


def _runtimes(document: dict[str, Any]) -> dict[str, Any]:
    """The table of handlers, wherever this version of the file has it."""
    for section in SECTIONS.values():
        handlers: Any = document.get("plugins", {}).get(section, {}).get("containerd", {})
        if "runtimes" in handlers:
            found: dict[str, Any] = handlers["runtimes"]
            return found
    return {}


def _differences(node: Node, change: Change) -> list[str]:
    pairs = ((node.main, change.main), (node.drop_in, change.drop_in))
    return [
        f"{'write' if new is not None else 'remove'} {path}"
        for path, new in pairs
        if _read(path) != new
    ]


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _back_up(path: Path) -> None:
    if path.exists():
        copy = path.with_name(f"{path.name}.before-thaw-{time.strftime('%Y%m%d-%H%M%S')}")
        copy.write_bytes(path.read_bytes())
        copy.chmod(path.stat().st_mode & 0o777)


def _write(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
    os.replace(new, path)


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Add the handler thaw to containerd, or remove it."
    )
    parser.add_argument("verb", choices=("print", "write", "remove", "systemd-cgroup"))
    parser.add_argument("--main", type=Path, default=Path("/etc/containerd/config.toml"))
    parser.add_argument("--drop-in", type=Path)
    parser.add_argument("--thaw-config", default=DEFAULT_CONFIG)
    parser.add_argument("--containerd", default="containerd")
    parser.add_argument("--dry-run", action="store_true")
    return parser.parse_args()


def main() -> int:
    """The command line; see install.sh."""
    given = _arguments()
    drop_in = given.drop_in or given.main.parent / "conf.d" / "thaw.toml"
    node = Node(given.main, drop_in, given.thaw_config, given.containerd)
    try:
        if given.verb == "systemd-cgroup":
            print(str(systemd_cgroup(node)).lower())
        elif given.verb == "print":
            _print(node)
        else:
            change = add(node) if given.verb == "write" else remove(node)
            steps = apply(node, change, given.dry_run)
            _say(steps, node, given.dry_run)
    except (Refused, TOMLKitError, tomllib.TOMLDecodeError, OSError) as error:
        print(f"containerd: {error}", file=sys.stderr)
        return 1
    return 0


def _print(node: Node) -> None:
    change = add(node)
    if change.drop_in is not None:
        print(f"# {node.drop_in}, imported by {node.main}:\n{change.drop_in}", end="")
    else:
        block = (change.main or "").partition(BEGIN)[2].partition(END)[0]
        print(f"# at the end of {node.main}:\n{block.lstrip()}", end="")


def _say(steps: list[str], node: Node, dry_run: bool) -> None:
    for step in steps:
        print(f"containerd: {'would ' if dry_run else ''}{step}")
    if not steps:
        print(f"containerd: nothing to change in {node.main}")
    if "cri" in (tomllib.loads(node.text).get("disabled_plugins", []) if node.text else []):
        print(f'containerd: warning: {node.main} disables the plugin "cri"', file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
