"""The launcher becomes the Python of whatever prefix it lies in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

NAME = "containerd-shim-thaw-v1"
LAUNCHER = Path(sysconfig.get_path("scripts"), NAME)
SHOW = "import json, sys; print(json.dumps([sys.argv, sys.flags.isolated, sys.flags.no_site]))"

pytestmark = pytest.mark.skipif(not LAUNCHER.exists(), reason=f"{LAUNCHER} is not installed")


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """An environment with the launcher, this Python, and a shim that shows how it was called."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    package = tmp_path / "env" / "lib" / version / "site-packages" / "shim"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text(SHOW)
    (tmp_path / "env" / "bin").mkdir()
    shutil.copy(LAUNCHER, tmp_path / "env" / "bin" / NAME)
    (tmp_path / "env" / "bin" / "python3").symlink_to(os.path.realpath(sys.executable))
    return tmp_path / "env"


def run(program: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *args], capture_output=True, text=True, check=False)


def main_of(prefix: Path) -> Path:
    (program,) = prefix.glob("lib/*/site-packages/shim/__main__.py")
    return program


def test_arguments_reach_python(prefix: Path) -> None:
    args = ["-namespace", "k8s.io", "", "start", "a b"]
    ran = run(prefix / "bin" / NAME, *args)
    assert ran.stderr == ""
    assert json.loads(ran.stdout) == [[str(main_of(prefix)), *args], 1, 1]


def test_through_a_chain_of_links(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / NAME).symlink_to("../" + NAME)
    (tmp_path / NAME).symlink_to(prefix / "bin" / NAME)
    ran = run(tmp_path / "local" / NAME)
    assert json.loads(ran.stdout)[0] == [str(main_of(prefix))]


def test_stdin_stdout_and_status_are_pythons(prefix: Path) -> None:
    main_of(prefix).write_text("import sys; print(sys.stdin.read()); sys.exit(7)")
    program = prefix / "bin" / NAME
    ran = subprocess.run([program], input="x", capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (7, "x\n")


def test_the_process_stays_the_same(prefix: Path) -> None:
    main_of(prefix).write_text("import os; print(os.getpid())")
    with subprocess.Popen([prefix / "bin" / NAME], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert int(child.stdout.read()) == child.pid


def test_without_a_shim(prefix: Path) -> None:
    main_of(prefix).unlink()
    ran = run(prefix / "bin" / NAME)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"{NAME}: cannot read {prefix}/lib/python3.")
    assert ran.stderr.count("\n") == 1


def test_without_python(prefix: Path) -> None:
    (prefix / "bin" / "python3").unlink()
    ran = run(prefix / "bin" / NAME)
    assert (ran.returncode, ran.stdout) == (1, "")
    wanted = f"{NAME}: cannot run {prefix}/bin/python3: No such file or directory (is {prefix} "
    assert ran.stderr == wanted + "still a Python environment?)\n"
