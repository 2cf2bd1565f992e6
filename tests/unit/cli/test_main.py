"""`thaw`: which verbs there are, where errors go, and what a script can rely on."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes.settled import asleep, eventually
from fakes.snapshots import make

from shim import __version__, cli
from shim.cli import VERBS, exits, main, module
from shim.errors import Damaged
from shim.snapshot.store import Store

CHECKOUT = Path(__file__).resolve().parents[3]
PROGRAM = "import sys; from shim.cli import main; sys.exit(main())"


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_a_module(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(module(verb).__doc__).startswith(f"`thaw {verb}`: ")
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert VERBS[verb][1:] in shown
    assert "--output {table,json}" in shown
    assert "--quiet" in shown


def test_help_names_every_verb_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert [verb for verb in VERBS if f"\n    {verb}" not in shown] == []
    assert exits.as_help() in shown
    assert [verb for verb in VERBS if f"| `thaw {verb}` | " not in cli.as_markdown()] == []
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"thaw {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["dump"], ["rm"], ["show", "a", "b"], ["ls", "--loud"], ["ls", "-o", "xml"]],
)
def test_a_wrong_call(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == exits.USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert "usage: thaw" in said.err


def configured(tmp_path: Path, text: str | None = None) -> str:
    path = tmp_path / "config.toml"
    path.write_text(f'snapshots = "{tmp_path}/snapshots"\n' if text is None else text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "words", "status"),
    [
        ("= 1", "it must be TOML", exits.USAGE),
        ("shapshots = 1", "unknown key 'shapshots'", exits.USAGE),
        (None, "no config", exits.USAGE),
    ],
)
def test_a_configuration_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, words: str, status: int
) -> None:
    path = configured(tmp_path, text) if text is not None else str(tmp_path / "none.toml")
    assert main(["ls", "--config", path]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("thaw ls: ")
    assert words in said.err
    assert said.err.count("\n") == 1


class Verb:
    """A verb that raises something."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def arguments(self, _parser: Any) -> None:
        pass

    def run(self, *_: Any) -> int:
        raise self._error


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (Damaged("a\nb", hint="do c"), exits.UNFIT, "thaw ls: a\\nb (do c)\n"),
        (OSError(errno.EIO, "I/O error", "/a"), exits.FAILED, "thaw ls: /a: I/O error\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), exits.FAILED, "thaw ls: Broken pipe\n"),
        (KeyboardInterrupt(), exits.INTERRUPTED, ""),
    ],
)
def test_an_error(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    said: str,
) -> None:
    monkeypatch.setattr(cli, "module", lambda _: Verb(error))
    assert main(["ls", "--config", configured(tmp_path)]) == status
    assert capsys.readouterr() == ("", said)


def started(tmp_path: Path, *words: str, program: str = PROGRAM) -> subprocess.Popen[str]:
    call = [sys.executable, "-c", program, *words, "--config", configured(tmp_path)]
    return subprocess.Popen(
        call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=CHECKOUT
    )


def test_as_a_command(tmp_path: Path) -> None:
    store = Store(tmp_path / "snapshots")
    make(store, "one")
    with started(tmp_path, "ls", "-q") as process:
        assert process.communicate() == ("one\n", "")
    assert process.returncode == 0
    assert list(store.names()) == ["one"]


def test_whoever_read_the_output_has_gone(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    call = [sys.executable, "-c", PROGRAM, "ls", "--config", configured(tmp_path)]
    with subprocess.Popen(call, stdout=writer, stderr=subprocess.PIPE, cwd=CHECKOUT) as process:
        os.close(writer)
        assert process.communicate()[1] == b""
    assert process.returncode == exits.NO_READER


def test_interrupted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "spans.json")
    program = f"print('begun', flush=True)\n{PROGRAM}"
    # Whoever starts the tests in the background of a script ignores it, and so would all of these.
    program = f"import signal; signal.signal(2, signal.default_int_handler)\n{program}"
    with started(tmp_path, "timeline", str(tmp_path / "spans.json"), program=program) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        with open(tmp_path / "spans.json", "w"):  # it has opened it, too
            # One that comes just before read(2) begins does not interrupt it; and a second one
            # could come when it is about to end because of the first.
            eventually(lambda: asleep(process.pid))
            process.send_signal(signal.SIGINT)
            assert process.communicate()[1] == ""
    assert process.returncode == exits.INTERRUPTED
