"""`thaw VERB`: one module per verb, imported when it is asked for.

A verb's module has `arguments(parser)` and `run(args, config)`, which returns the exit status
(exits.py) or raises. What it prints goes through output.py.
"""

from __future__ import annotations

import argparse
import importlib
import keyword
import os
import select
import sys
from collections.abc import Collection, Sequence
from types import ModuleType

from shim import __version__
from shim.cli import exits, output
from shim.config import load
from shim.errors import ThawError

# verb → what it does; the module of the same name has `arguments(parser)` and `run(args, config)`
VERBS = {
    "checkpoint": "make a snapshot of a running container",
    "ls": "list the snapshots",
    "show": "print what a snapshot was made from and needs",
    "inspect": "look into a snapshot: processes, memory, files, sockets, extents",
    "mem": "print where the bytes of a snapshot are",
    "diff": "compare two snapshots",
    "verify": "read snapshots and compare them with all their checksums",
    "fit": "say whether a snapshot would be restored here, and if not, why",
    "plan": "print what a restore would do, without doing it",
    "tag": "give a snapshot another name, or share it",
    "rm": "remove snapshots",
    "gc": "remove what the limits of retention leave no room for",
    "push": "send a snapshot to a registry",
    "pull": "fetch a snapshot from a registry",
    "export": "write a snapshot into one tar file",
    "import": "make a snapshot of a tar file: an exported one, or kubelet's checkpoint",
    "warm": "read the GPU memory of snapshots into the node's cache",
    "cache": "print what is in the node's cache, or drop some of it",
    "index": "make CRIU's images restorable by Thaw's own engine",
    "timeline": "show how long the steps of a checkpoint or a restore took",
    "doctor": "check what this node offers, and how to get what is missing",
    "completion": "print the script that completes `thaw` in a shell",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    if hasattr(sys.stdout, "reconfigure"):  # what a locale cannot print is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except BrokenPipeError:
        # Nothing more can be printed, at the interpreter's end neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return exits.NO_READER


def module(verb: str) -> ModuleType:
    """The module of a verb; one that is a word of Python's has a name with `_`."""
    return importlib.import_module(f"{__name__}.{verb}{'_' * keyword.iskeyword(verb)}")


def parser(complete: Collection[str]) -> argparse.ArgumentParser:
    """The parser of the command line, with the arguments of some verbs."""
    parser = argparse.ArgumentParser(
        prog="thaw",
        description="Snapshots of containers: made, named, moved and looked into.",
        epilog=exits.as_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"thaw {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, sentence in VERBS.items():
        sub = verbs.add_parser(
            name,
            help=sentence,
            description=_sentence(name),
            conflict_handler="resolve",  # a verb may have its own words for what all have
        )
        if name in complete:
            output.options(sub)
            module(name).arguments(sub)
    return parser


def as_markdown() -> str:
    """The README's table of verbs."""
    rows = [f"| `thaw {verb}` | {_sentence(verb)} |" for verb in VERBS]
    return "\n".join(["| verb | what it does |", "|---|---|", *rows])


def _sentence(verb: str) -> str:
    return VERBS[verb][0].upper() + VERBS[verb][1:] + "."


def _run(arguments: list[str]) -> int:
    asked = next((word for word in arguments if not word.startswith("-")), "")
    args = parser({asked}).parse_args(arguments)
    try:
        return int(module(args.verb).run(args, load(args.config)))
    except (ThawError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            raise
        output.complain(args.verb, error)
        return exits.status_of(error)


def _reader_is_gone() -> bool:
    """Whether it was our own output that broke."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return bool(poll.poll(0))
    except (OSError, ValueError):
        return False
