"""`thaw completion`: print the script that completes `thaw` in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from shim.config import Config

SHELLS = ("bash", "zsh", "fish")
# Snapshots are looked up whenever a name is to be completed.
_NAMES: dict[str, Any] = {
    "bash": "_thaw_names",
    "zsh": "_thaw_names",
    "fish": "(thaw ls -q 2>/dev/null)",
    "preamble": {
        "bash": '_thaw_names() {\n  compgen -W "$(thaw ls -q 2>/dev/null)" -- "$1"\n}',
        "zsh": (
            "_thaw_names() {\n"
            "  local -a names\n"
            '  names=(${(f)"$(thaw ls -q 2>/dev/null)"})\n'
            "  compadd -a names\n"
            "}"
        ),
    },
}
_SNAPSHOTS = frozenset({"REF", "NAME", "SNAPSHOT", "SOURCE", "A", "B"})  # metavars


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "shell", choices=SHELLS, help='e.g. `eval "$(thaw completion bash)"` in ~/.bashrc'
    )


def run(args: argparse.Namespace, _config: Config) -> int:
    """Print it. It is made of the parsers of all verbs."""
    import shtab

    from shim.cli import VERBS, parser

    whole = parser(VERBS)
    for action in _actions(whole):
        _describe(action, shtab.FILE, shtab.DIRECTORY)
    print(shtab.complete(whole, args.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _actions(sub)
        else:
            yield action


def _describe(action: argparse.Action, files: object, folders: object) -> None:
    """Say what completes an argument: shtab looks for this attribute."""
    words = str(action.metavar or "").replace("|", " ").split()
    if any(word in _SNAPSHOTS for word in words):
        action.complete = _NAMES  # type: ignore[attr-defined]
    elif "FILE" in words:
        action.complete = files  # type: ignore[attr-defined]
    elif "DIR" in words:
        action.complete = folders  # type: ignore[attr-defined]
