"""The operator's configuration: what is not understood is refused, with the place and the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim import config
from shim.config import TABLE, Config, load
from shim.errors import BadConfiguration

KEYS = {key.name: key for key in TABLE}


@pytest.fixture(autouse=True)
def etc(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Stands for /etc/thaw/config.toml; not there at first."""
    path = tmp_path_factory.mktemp("etc") / "config.toml"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "DEFAULT_PATH", str(path))
        yield path


def body(text: str) -> Config:
    return load(body=text.encode())


def test_defaults() -> None:
    found = load()
    assert found.as_dict() == {key.name: key.default for key in TABLE}
    assert found.source == "defaults"
    assert found.text("state") == "/run/thaw"
    assert found.number("restore.deadline") == 60.0
    assert not found.flag("SystemdCgroup")


def test_the_order_in_which_it_is_looked_for(etc: Path, tmp_path: Path) -> None:
    etc.write_text('criu = "/etc/criu"')
    named = tmp_path / "named.toml"
    named.write_text('criu = "/named/criu"')
    assert load()["criu"] == "/etc/criu"
    assert load(str(named))["criu"] == "/named/criu"
    assert load(str(named), b'criu = "/body/criu"')["criu"] == "/body/criu"
    assert load(body=b" ").text("criu") == "", "a body is a configuration, though an empty one"
    assert (load().source, load(str(named)).source) == (str(etc), str(named))


def test_a_whole_file() -> None:
    found = body(
        """
        state = "/run/x"
        snapshots = "/srv/snapshots"
        BinaryName = "crun"
        SystemdCgroup = true
        IoUid = 7
        [restore]
        deadline = 12.5
        [log]
        level = "debug"
        """
    )
    assert found.text("state") == "/run/x"
    assert found.flag("SystemdCgroup")
    assert found.number("IoUid") == 7
    assert found.number("restore.deadline") == 12.5
    assert found.text("log.level") == "debug"
    assert found.text("Root") == "/run/containerd/runc", "what is not named stays"


def test_whole_seconds_are_seconds() -> None:
    assert body("restore.deadline = 30")["restore.deadline"] == 30.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stat = 1", "unknown key 'stat'"),
        ("[restore]\ndeadlin = 1", r"unknown key 'restore\.deadlin'"),
        ("[BinaryName]\nx = 1", r"unknown key 'BinaryName\.x'"),
        ("state = 1", "state = 1"),
        ("state = 'relative'", "state = 'relative'"),
        ("snapshots = ''", "snapshots = ''"),
        ("SystemdCgroup = 'yes'", "SystemdCgroup = 'yes'"),
        ("SystemdCgroup = 1", "SystemdCgroup = 1"),
        ("IoUid = true", "IoUid = True"),
        ("IoUid = 1.0", "IoUid"),
        ("restore.deadline = 0", "restore.deadline"),
        ("restore.deadline = -1.0", "restore.deadline"),
        ("restore.deadline = nan", "restore.deadline"),
        ("restore.deadline = inf", "restore.deadline"),
        ("restore.deadline = true", "restore.deadline"),
        ("restore.deadline = '60'", "restore.deadline"),
        ("log.level = 'loud'", "log.level = 'loud'"),
        ("log.level = ['info']", "log.level"),
        ("criu = 2026-08-01", "criu"),
        ("= 1", "config_body"),
        ("state = ", "config_body"),
        ('criu = "a\nb"', "config_body"),
    ],
)
def test_what_is_wrong_is_named(text: str, words: str) -> None:
    with pytest.raises(BadConfiguration, match=words) as refused:
        body(text)
    assert refused.value.message.startswith("the runtime option config_body")
    assert refused.value.hint


def test_not_even_text() -> None:
    with pytest.raises(BadConfiguration, match="config_body"):
        load(body=b"\xff\xfe")


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_noise(noise: str | bytes) -> None:
    data = noise if isinstance(noise, bytes) else noise.encode("utf-8", "surrogatepass")
    try:
        found = load(body=data)
    except BadConfiguration:
        return
    assert found.as_dict() == Config().as_dict(), "only nothing can be understood by chance"


@given(
    st.dictionaries(
        st.sampled_from(sorted(KEYS)) | st.text("abc.", min_size=1, max_size=4),
        st.integers(-10, 10**6) | st.booleans() | st.floats(-1, 1e6) | st.text("/ab", max_size=4),
        max_size=4,
    )
)
def test_values_have_the_types_of_the_table(values: dict[str, Any]) -> None:
    def toml(value: Any) -> str:
        return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)

    text = "\n".join(f'"{key}" = {toml(value)}' for key, value in values.items())
    try:
        found = body(text)
    except BadConfiguration:
        return
    assert all(type(found[name]) is key.type for name, key in KEYS.items())


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match=f"no configuration file {tmp_path}/none") as refused:
        load(str(tmp_path / "none"))
    assert "ConfigPath" in refused.value.hint


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match=f"cannot read {tmp_path}"):
        load(str(tmp_path))


def test_overridden_keeps_the_rest(etc: Path) -> None:
    etc.write_text('BinaryName = "crun"\nRoot = "/r"')
    found = load().overridden({"BinaryName": "youki"})
    assert (found["BinaryName"], found["Root"], found.source) == ("youki", "/r", str(etc))
    assert load()["BinaryName"] == "crun", "the old one is not changed"


def test_to_another_process_and_back() -> None:
    found = body("IoUid = 3")
    assert Config(found.as_dict()).as_dict() == found.as_dict()
    found.as_dict()["IoUid"] = 4
    assert found["IoUid"] == 3


def test_the_table() -> None:
    """The README is made from it."""
    for key in TABLE:
        assert type(key.default) is key.type
        assert key.sentence.endswith(".")
    assert len(KEYS) == len(TABLE)


@pytest.mark.parametrize("criu", ["criu", "bin/criu", "/opt/criu-4.2"])
def test_a_criu_that_runc_would_not_find(criu: str) -> None:
    with pytest.raises(BadConfiguration, match="criu = "):
        load(body=f'criu = "{criu}"'.encode())


def test_a_criu_that_runc_finds() -> None:
    assert load(body=b'criu = "/opt/thaw/criu/criu"').text("criu") == "/opt/thaw/criu/criu"
