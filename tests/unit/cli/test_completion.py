"""`thaw completion`: what a shell makes of the script."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.command import Thaw
from fakes.snapshots import make

from shim.cli import VERBS
from shim.cli.completion import SHELLS

CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_verb_is_in_it(thaw: Thaw, shell: str) -> None:
    said = thaw("completion", shell)
    assert (said.status, said.err) == (0, "")
    assert [verb for verb in VERBS if verb not in said.out] == []
    assert "thaw ls -q" in said.out


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_can_read_it(thaw: Thaw, tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    script = tmp_path / "script"
    script.write_text(thaw("completion", shell).out)
    ran = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("thaw ver", ["verify"]),
        ("thaw show qw", ["qwen-8b"]),
        ("thaw rm qwen-8b ll", ["llama"]),
        ("thaw show -o js", ["json"]),
        ("thaw gc --dry", ["--dry-run"]),
    ],
)
def test_in_bash(thaw: Thaw, tmp_path: Path, words: str, found: list[str]) -> None:
    for name in ("qwen-8b", "llama"):
        make(thaw.store, name)
    command = tmp_path / "thaw"
    program = "import sys; from shim.cli import main; sys.exit(main())"
    config = tmp_path / "config.toml"
    command.write_text(
        f'#!/bin/sh\ncd {CHECKOUT} && exec {sys.executable} -c "{program}" "$@" --config {config}\n'
    )
    command.chmod(0o755)
    script = tmp_path / "script"
    script.write_text(thaw("completion", "bash").out)
    ask = f"""
        source {script}
        COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
        _shtab_thaw
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{tmp_path}:{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "--norc", "-c", ask],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert (ran.stdout.split(), ran.stderr) == (found, "")
