"""`thaw doctor`: what this node offers of what Thaw needs, and how to get what is missing."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence

from shim import doctor
from shim.cli import exits, output
from shim.config import Config, load
from shim.doctor.node import SOCKET
from shim.errors import BadConfiguration

_MARKS = {doctor.OK: "ok", doctor.BAD: "NO", doctor.ABSENT: "-"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "--address", default=SOCKET, metavar="SOCKET", help="containerd's; default: %(default)s"
    )
    parser.add_argument(
        "--containerd", default="containerd", metavar="EXE", help="asked if none is running"
    )
    # A file that cannot be read is one of the findings: so nobody else may read it before.
    parser.add_argument(
        "--config", dest="file", default="", metavar="FILE", help="instead of /etc/thaw/config.toml"
    )
    parser.set_defaults(config=os.devnull)


def run(args: argparse.Namespace, _config: Config) -> int:
    """Print all findings; the answer is yes if nothing that is required is missing."""
    config, error = _load(args.file)
    node = doctor.Node(config, error, containerd=args.containerd, address=args.address)
    found = list(doctor.examine(node))
    good = doctor.fit(found)
    document = {"fit": good, "findings": found}
    output.emit(args, document, lambda: _lines(found, quiet=args.quiet))
    return exits.OK if good else exits.UNFIT


def _load(path: str) -> tuple[Config, str]:
    try:
        return load(path), ""
    except BadConfiguration as error:
        return Config(), str(error)


def _lines(found: Sequence[doctor.Finding], *, quiet: bool) -> Iterator[str]:
    """By grade; of each finding that is not OK also what to do. `quiet`: these only."""
    width = max(len(finding.check) for finding in found)
    for grade in (doctor.REQUIRED, doctor.RECOMMENDED, doctor.OPTIONAL):
        of_grade = [f for f in found if f.grade == grade and not (quiet and f.state == doctor.OK)]
        if of_grade:
            yield f"{grade}:"
        for finding in of_grade:
            yield f"  {_MARKS[finding.state]:<2}  {finding.check:<{width}}  {finding.said}"
            if finding.state != doctor.OK:
                yield f"      {'':<{width}}  → {finding.fix}"
    if not quiet:
        yield _summary(found)


def _summary(found: Sequence[doctor.Finding]) -> str:
    missing = [f for f in found if f.state == doctor.BAD]
    if not missing:
        return "this node is as it should be"
    counts = [
        (g, sum(f.grade == g for f in missing)) for g in dict.fromkeys(f.grade for f in missing)
    ]
    return "missing: " + ", ".join(f"{count} {grade}" for grade, count in counts)
