"""`thaw`: which verbs there are, where errors go, and what a script can rely on."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.snapshots import write

from shim import __version__
from shim.cli import VERBS, main


def configured(tmp_path: Path, text: str | None = None) -> str:
    path = tmp_path / "config.toml"
    path.write_text(f'snapshots = "{tmp_path}/snapshots"\n' if text is None else text)
    return str(path)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_a_module(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"shim.cli.{verb}")
    assert str(module.__doc__).startswith(f"`thaw {verb}`: ")
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert VERBS[verb].capitalize() in capsys.readouterr().out


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert [verb for verb in VERBS if f"\n    {verb}" not in shown] == []
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"thaw {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["dump"], ["rm"], ["show", "a", "b"], ["ls", "--loud"], ["checkpoint", "c"]]
)
def test_a_wrong_call(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "usage: thaw" in said.err


@pytest.mark.parametrize(
    ("text", "words"),
    [("= 1", "it must be TOML"), ("shapshots = 1", "unknown key 'shapshots'"), (None, "no config")],
)
def test_a_configuration_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, words: str
) -> None:
    path = configured(tmp_path, text) if text is not None else str(tmp_path / "none.toml")
    assert main(["ls", "--config", path]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("thaw ls: ")
    assert words in said.err
    assert said.err.count("\n") == 1


def test_an_error_of_the_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "snapshots").touch()
    assert main(["ls", "--config", configured(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("thaw ls: [Errno 20]")


def test_as_a_command(tmp_path: Path) -> None:
    write(tmp_path / "snapshots" / "one")
    program = "import sys; from shim.cli import main; sys.exit(main())"
    call = [sys.executable, "-c", program, "ls", "-q", "--config", configured(tmp_path)]
    checkout = Path(__file__).resolve().parents[3]
    ran = subprocess.run(call, capture_output=True, text=True, check=False, cwd=checkout)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "one\n", "")
    assert os.listdir(tmp_path / "snapshots") == ["one"]
