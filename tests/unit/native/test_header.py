"""Three headers are the one list of native functions: the module, its stub and they agree."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from shim import _native

TOP = Path(__file__).parents[3]
HEADERS = [TOP / "native" / name for name in ("thaw.h", "checkpoint.h", "direct.h")]


def declared() -> dict[str, int]:
    """The functions of the headers and how many arguments each takes."""
    whole = "".join(header.read_text() for header in HEADERS)
    text = re.sub(r"/\*.*?\*/", "", whole, flags=re.DOTALL)
    found = re.findall(r"(\w+)\(([^)]*)\);", text)
    return {name: 0 if args == "void" else args.count(",") + 1 for name, args in found}


def test_the_module_has_them_all() -> None:
    assert {name for name in dir(_native.lib) if name.startswith("thaw_")} == set(declared())


def test_the_stub_has_them_all() -> None:
    tree = ast.parse((TOP / "shim" / "_native.pyi").read_text())
    (lib,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "_Lib")
    functions = [node for node in lib.body if isinstance(node, ast.FunctionDef)]
    typed = {f.name: len(f.args.args) + len(f.args.posonlyargs) - 1 for f in functions}
    assert typed == declared()


def test_nothing_but_declarations() -> None:
    lines = [line for header in HEADERS for line in header.read_text().splitlines()]
    directives = [line.split()[0] for line in lines if line.startswith("#")]
    assert set(directives) == {"#pragma", "#include"}
