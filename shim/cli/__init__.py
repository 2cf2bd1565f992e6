"""`thaw VERB`: one module per verb, imported when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from shim import __version__
from shim.config import Config, load
from shim.errors import ThawError

# verb → what it does; the module of the same name has `arguments(parser)` and `run(args, config)`
VERBS = {
    "checkpoint": "make a snapshot of a running container",
    "ls": "list the snapshots",
    "show": "print what a snapshot was made from and needs",
    "rm": "remove snapshots",
    "index": "make CRIU's images restorable by Thaw's own engine",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = _parser(list(sys.argv[1:] if arguments is None else arguments)).parse_args(arguments)
    verb = importlib.import_module(f"shim.cli.{args.verb}")
    try:
        config: Config = load(args.config)
        return int(verb.run(args, config))
    except (ThawError, OSError) as error:
        print(f"thaw {args.verb}: {error}", file=sys.stderr)
        return 1


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="thaw", description="Snapshots of containers: made, listed, removed."
    )
    parser.add_argument("--version", action="version", version=f"thaw {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, sentence in VERBS.items():
        sub = verbs.add_parser(name, help=sentence, description=sentence.capitalize() + ".")
        sub.add_argument(
            "--config", default="", metavar="FILE", help="instead of /etc/thaw/config.toml"
        )
        if name in arguments:
            importlib.import_module(f"shim.cli.{name}").arguments(sub)
    return parser
