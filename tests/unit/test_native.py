"""Native calls: errors become OSError; what they do is seen from outside."""

from __future__ import annotations

import errno
import os
import sys

import pytest

from shim import native
from shim._native import ffi, lib
from shim.native import check


def test_check_passes_results_on() -> None:
    assert check(7, "never said") == 7


def test_check_makes_the_right_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"mount: No such file.*: '/a'") as caught:
        check(-errno.ENOENT, "mount", "/a")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/a")


def test_check_without_words() -> None:
    with pytest.raises(PermissionError) as caught:
        check(-errno.EPERM)
    assert caught.value.filename is None
    assert caught.value.strerror == os.strerror(errno.EPERM)


def test_the_hook_is_installed() -> None:
    assert os.access(native.HOOK, os.X_OK)


SUBREAPER = """
import os, sys
sys.path[:0] = sys.argv[1:]
from shim.native import set_subreaper
set_subreaper()
read, write = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.write(write, b"%d" % os.getpid())
    os._exit(0)
first, second = os.wait()[0], os.wait()[0]
assert int(os.read(read, 20)) in (first, second)
"""


def test_a_subreaper_inherits_orphans() -> None:
    argv = [sys.executable, "-c", SUBREAPER, *sys.path]
    pid = os.posix_spawn(sys.executable, argv, os.environ)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_core_scheduling_works_or_says_why_not() -> None:
    # EINVAL: the kernel has none; ENODEV: the processor has no second thread per core.
    script = "import sys; sys.path[:0] = sys.argv[1:]\nfrom shim import native\n"
    script += "native.create_core_cookie()\nnative.join_core_cookie(native.os.getpid())\n"
    wrapped = f"try:\n    exec({script!r})\nexcept OSError as e:\n    raise SystemExit(e.errno)"
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", wrapped, *sys.path], os.environ)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, errno.EINVAL, errno.ENODEV)


def test_loop_devices_attach_and_detach(tmp_path: os.PathLike[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    image = os.path.join(tmp_path, "image")
    with open(image, "wb") as file:
        file.truncate(1 << 20)
    name = ffi.new("char[]", 32)
    fd = check(lib.thaw_loop_attach(os.fsencode(image), 1, 0, name, 32), "attach", image)
    device = ffi.string(name)
    backing = f"/sys/block/{os.path.basename(device.decode())}/loop/backing_file"
    with open(backing) as file_name:
        assert file_name.read().strip() == image
    assert lib.thaw_loop_detach(device) == 0
    os.close(fd)
    assert not os.path.exists(backing)
