"""Runtime options as containerd's versions send them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shim import config
from shim.bundle import Bundle
from shim.errors import BadConfiguration, InvalidArgument
from shim.proto import runc_pb, runtimeoptions_pb
from shim.proto.known import Any, pack
from shim.task.options import configuration, keep, kept

TOML = b'BinaryName = "crun"\nstate = "/run/elsewhere"\n'


@pytest.fixture(autouse=True)
def no_system_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "etc.toml"
    monkeypatch.setattr(config, "DEFAULT_PATH", str(path))
    return path


def test_none() -> None:
    assert configuration(None).as_dict() == config.Config().as_dict()
    assert configuration(Any()).as_dict() == config.Config().as_dict()


@pytest.mark.parametrize("prefix", ["", "type.googleapis.com/", "a/b/"])
def test_generic_options_with_a_body(prefix: str) -> None:
    packed = pack(runtimeoptions_pb.Options(config_body=TOML))
    packed.type_url = prefix + packed.type_url
    assert configuration(packed).text("BinaryName") == "crun"
    assert configuration(packed).text("state") == "/run/elsewhere"


def test_generic_options_with_a_path(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(TOML)
    packed = pack(runtimeoptions_pb.Options(config_path=str(path), type_url="ignored"))
    assert configuration(packed).text("BinaryName") == "crun"
    path.unlink()
    with pytest.raises(BadConfiguration, match=str(path)):
        configuration(packed)


@pytest.mark.parametrize("prefix", ["", "type.googleapis.com/"])
def test_runc_options_override_the_file(no_system_configuration: Path, prefix: str) -> None:
    no_system_configuration.write_text('BinaryName = "crun"\nRoot = "/run/x"\nstate = "/run/y"\n')
    options = runc_pb.Options(binary_name="youki", systemd_cgroup=True, io_uid=7, io_gid=8)
    packed = pack(options)
    packed.type_url = prefix + packed.type_url
    found = configuration(packed)
    assert found.text("BinaryName") == "youki"
    assert found.flag("SystemdCgroup")
    assert (found.number("IoUid"), found.number("IoGid")) == (7, 8)
    assert found.text("Root") == "/run/x", "what they leave out stays"
    assert found.text("state") == "/run/y"


def test_the_type_decides_not_the_bytes() -> None:
    """Both messages have a field 3: a TOML body here, a cgroup path there (rust-extensions#366)."""
    body = runtimeoptions_pb.Options(config_body=TOML)
    group = runc_pb.Options(shim_cgroup="/thaw")
    assert runc_pb.Options.decode(body.encode()).shim_cgroup == TOML.decode(), "they do decode"
    assert configuration(pack(body)).text("ShimCgroup") == ""
    assert configuration(pack(group)).text("ShimCgroup") == "/thaw"
    assert configuration(pack(group)).text("BinaryName") == "runc"


def test_options_of_another_runtime_are_refused() -> None:
    stranger = Any(type_url="io.other.Options", value=runtimeoptions_pb.Options().encode())
    with pytest.raises(InvalidArgument, match=r"runtime options of type io\.other\.Options"):
        configuration(stranger)


def test_bytes_that_are_no_options() -> None:
    with pytest.raises(InvalidArgument):
        configuration(Any(type_url=runc_pb.Options.TYPE, value=b"\xff\xff\xff"))


def test_delete_reads_back_what_create_kept(tmp_path: Path) -> None:
    bundle = Bundle(str(tmp_path))
    wanted = configuration(pack(runc_pb.Options(binary_name="youki", systemd_cgroup=True)))
    keep(bundle, wanted)
    assert kept(bundle).as_dict() == wanted.as_dict()
    assert (tmp_path / "options.json").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "runtime").read_text() == "youki"
    assert json.loads((tmp_path / "options.json").read_text())["SystemdCgroup"] is True


@pytest.mark.parametrize("content", [None, "", "{", "no json"])
def test_delete_without_them_takes_what_is_in_force(
    tmp_path: Path, no_system_configuration: Path, content: str | None
) -> None:
    no_system_configuration.write_text('BinaryName = "crun"\n')
    if content is not None:
        (tmp_path / "options.json").write_text(content)
    assert kept(Bundle(str(tmp_path))).text("BinaryName") == "crun"
