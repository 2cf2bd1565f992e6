"""No thread may have more than the live spec allows, whatever the images say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fakes import creds as fake
from fakes.creds import Dump, halves, spec
from fakes.images import Images

from shim.errors import Damaged, Unfit
from shim.gpu.spec import deny_io_uring
from shim.proto import criu_pb as pb
from shim.snapshot import allowance, capabilities, privileges
from shim.snapshot import images as criu

KILL = halves(capabilities.bits(["CAP_KILL"]))
ADMIN = halves(capabilities.bits(["CAP_SYS_ADMIN"]))
LATE = halves(capabilities.bits(["CAP_BPF"]))  # in the second word
ROOT = {"uid": 0, "euid": 0, "suid": 0, "fsuid": 0, "gid": 0, "egid": 0, "sgid": 0, "fsgid": 0}


def refusal(images: Path, live: dict[str, Any] | None = None) -> str:
    with pytest.raises(Unfit) as caught:
        privileges.check(images, live or spec())
    assert caught.value.hint
    return caught.value.message


def test_what_the_pod_has_itself(tmp_path: Path) -> None:
    privileges.check(Dump(tmp_path, 1, 7, 8).write(), spec())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(({name: 0}, "user id 0, the pod has 1000") for name in ("uid", "euid", "suid", "fsuid")),
        *(({name: 0}, "group id 0, the pod has 5 6 1001") for name in ("gid", "egid", "fsgid")),
        ({"groups": [5, 0]}, "is in groups 0, the pod has 5 6 1001"),
        ({"cap_bnd": ADMIN}, "bounding capabilities that the pod cannot have: CAP_SYS_ADMIN"),
        ({"cap_bnd": LATE}, "bounding capabilities that the pod cannot have: CAP_BPF"),
        ({"cap_bnd": [0, 1 << 31]}, "cannot have: CAP_63"),
        ({"cap_inh": ADMIN}, "inheritable capabilities"),
        ({"cap_prm": KILL}, "permitted capabilities that the pod cannot have: CAP_KILL"),
        ({"cap_amb": KILL}, "ambient capabilities that the pod cannot have: CAP_KILL"),
        ({"cap_eff": KILL}, "effective capabilities that the pod cannot have: CAP_KILL"),
        ({"no_new_privs": 0}, "could gain privileges"),
        ({"secbits": 4}, "secure bits 0x4"),
        ({"secbits": 1 << 12}, "secure bits 0x1000"),
        ({"lsm_profile": b""}, "the security profile none, the pod has 'cri-containerd'"),
        ({"lsm_profile": b"unconfined\n"}, "profile 'unconfined\\n', the pod has"),
        ({"lsm_sockcreate": b"system_u"}, "labels its sockets 'system_u'"),
    ],
    ids=str,
)
def test_more_than_the_pod(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    said = refusal(Dump(tmp_path, 1, 7).write(**changes))
    assert said.startswith("thread 7 of process 1 ('worker') ")
    assert words in said


def test_root_with_the_capability_may_be_anybody(tmp_path: Path) -> None:
    live = spec(uid=0, bounding=["CAP_SETUID", "CAP_SETGID"])
    images = Dump(tmp_path).write(uid=3, groups=[4], cap_bnd=[0, 0])
    privileges.check(images, live)
    assert "real user id 3" in refusal(images, spec(uid=0, bounding=["CAP_SETGID"]))
    assert "group id 1001" in refusal(
        Dump(tmp_path).write(**{**ROOT, "gid": 1001}, cap_bnd=[0, 0]),
        spec(uid=0, bounding=["CAP_SETUID"]),
    )
    assert "real user id 0" in refusal(images, spec(uid=5, bounding=["CAP_SETUID"])), "not root"


def test_what_can_be_attained(tmp_path: Path) -> None:
    """Executing a file gives capabilities, unless no_new_privs forbids it."""
    images = Dump(tmp_path).write(cap_prm=KILL, cap_eff=KILL, cap_inh=KILL)
    refusal(images)
    privileges.check(images, spec(noNewPrivileges=False))
    sets = {"bounding": fake.BOUNDING, "ambient": ["CAP_KILL"]}
    privileges.check(images, spec(capabilities=sets))
    images = Dump(tmp_path).write(**ROOT, groups=[0], cap_prm=KILL, cap_eff=KILL)
    privileges.check(images, spec(uid=0))
    assert "permitted" in refusal(images, spec(uid=0, capabilities={"bounding": fake.BOUNDING}))


def test_sets_that_cannot_be(tmp_path: Path) -> None:
    live = spec(noNewPrivileges=False)
    assert "not permitted" in refusal(Dump(tmp_path).write(cap_eff=KILL), live)
    assert "ambient" in refusal(Dump(tmp_path).write(cap_amb=KILL, cap_prm=KILL), live)
    assert "3 words" in refusal(Dump(tmp_path).write(cap_bnd=[0, 0, 0]), live)
    privileges.check(Dump(tmp_path).write(cap_bnd=[]), live)


def test_secure_bits(tmp_path: Path) -> None:
    privileges.check(Dump(tmp_path).write(secbits=0b11_0001_0000), spec())
    images = Dump(tmp_path).write(secbits=4, cap_bnd=[0, 0])
    privileges.check(images, spec(bounding=["CAP_SETPCAP"]))


@pytest.mark.parametrize(
    ("live", "profile"),
    [
        ({"apparmorProfile": "", "selinuxLabel": "u:r:t:s0"}, b"u:r:t:s0"),
        ({"apparmorProfile": "unconfined"}, b""),
        ({"apparmorProfile": ""}, b""),
    ],
)
def test_security_modules(tmp_path: Path, live: dict[str, str], profile: bytes) -> None:
    privileges.check(Dump(tmp_path).write(lsm_profile=profile), spec(**live))
    assert "profile" in refusal(Dump(tmp_path).write(lsm_profile=b"other"), spec(**live))


def test_a_label_that_is_inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowance, "_own_label", lambda: b"runtimes")
    for profile in (b"runtimes", b""):
        images = Dump(tmp_path).write(lsm_profile=profile)
        privileges.check(images, spec(apparmorProfile=""))
        refusal(images, spec(apparmorProfile="cri-containerd"))
    assert "none or 'runtimes'" in refusal(
        Dump(tmp_path).write(lsm_profile=b"other"), spec(apparmorProfile="")
    )


def test_policies_and_namespaces_of_its_own(tmp_path: Path) -> None:
    images = Dump(tmp_path).write()
    (images / "userns-9.img").write_bytes(b"")
    assert "user namespace" in refusal(images)
    privileges.check(images, spec(linux={"namespaces": [{"type": "user"}]}))
    (images / "apparmor.img").write_bytes(b"")
    assert "AppArmor policies" in refusal(images)


@pytest.mark.parametrize(("policy", "good"), [(0, True), (3, True), (1, False), (6, False)])
def test_real_time(tmp_path: Path, policy: int, good: bool) -> None:
    dump = Dump(tmp_path)
    dump.cores[1] = fake.core(sched_policy=policy)
    images = dump.write()
    if good:
        privileges.check(images, spec())
    else:
        assert "real-time" in refusal(images)
    privileges.check(images, spec(scheduler={"policy": "SCHED_FIFO"}))


class TestSeccomp:
    def test_a_thread_without_a_filter(self, tmp_path: Path) -> None:
        dump = Dump(tmp_path, 1, 7)
        dump.cores[7] = fake.core(False, seccomp_mode=None)
        images = dump.write()
        assert "thread 7" in refusal(images)
        privileges.check(images, spec(linux={"seccomp": None}))

    def test_what_thaw_denies_protects_nobody(self, tmp_path: Path) -> None:
        """A snapshot without it is as good, but for a pod that has a profile of its own."""
        dump = Dump(tmp_path, 1, 7)
        dump.cores[7] = fake.core(False, seccomp_mode=None)
        images = dump.write()
        ours, own = spec(linux={"seccomp": None}), spec()
        deny_io_uring(ours)
        deny_io_uring(own)
        privileges.check(images, ours)
        assert "thread 7" in refusal(images, own)

    def test_what_all_threads_have_is_dumped_once(self, tmp_path: Path) -> None:
        dump = Dump(tmp_path, 1, 7)
        dump.cores[7] = fake.core(False, seccomp_mode=pb.SECCOMP_DISABLED)
        dump.filters = [
            pb.SeccompFilter(filter=bytes(8), flags=1),
            pb.SeccompFilter(filter=bytes(8), prev=0),
        ]
        privileges.check(dump.write(), spec())
        dump.cores[1] = fake.core(seccomp_filter=1)
        privileges.check(dump.write(), spec())
        dump.filters[0].flags = 2
        assert "thread 7" in refusal(dump.write())

    def test_strict_is_stricter(self, tmp_path: Path) -> None:
        dump = Dump(tmp_path)
        dump.cores[1] = fake.core(seccomp_mode=pb.SECCOMP_STRICT)
        privileges.check(dump.write(), spec())

    @pytest.mark.parametrize("changes", [{"seccomp_mode": 3}, {"seccomp_filter": 1}], ids=str)
    def test_what_is_none(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        dump = Dump(tmp_path)
        dump.cores[1] = fake.core(**changes)
        with pytest.raises(Damaged, match="there is no seccomp"):
            privileges.check(dump.write(), spec())

    @pytest.mark.parametrize("changes", [{"old_seccomp_mode": 0}, {"old_seccomp_filter": 0}])
    def test_the_old_place_overrides_the_new(self, tmp_path: Path, changes: dict[str, int]) -> None:
        dump = Dump(tmp_path)
        for name, value in changes.items():
            setattr(dump.cores[1].tc, name, value)
        with pytest.raises(Damaged, match="old CRIU"):
            privileges.check(dump.write(), spec())

    @pytest.mark.parametrize(
        "filters",
        [
            [pb.SeccompFilter(filter=b"")],
            [pb.SeccompFilter(filter=bytes(7))],
            [pb.SeccompFilter(filter=bytes(8), prev=0)],
        ],
    )
    def test_filters_that_criu_could_not_install(
        self, tmp_path: Path, filters: list[pb.SeccompFilter]
    ) -> None:
        dump = Dump(tmp_path)
        dump.filters = filters
        with pytest.raises(Damaged, match=r"seccomp\.img: filter 0"):
            privileges.check(dump.write(), spec())

    @pytest.mark.parametrize("record", [b"\x0a", b"\x0a\x05", b"\x12\x00", b"\x0a" + b"\xff" * 9])
    def test_no_list_of_filters(self, tmp_path: Path, record: bytes) -> None:
        images = Dump(tmp_path).write()
        data = (images / "seccomp.img").read_bytes()[:8]
        data += len(record).to_bytes(4, "little") + record
        (images / "seccomp.img").write_bytes(data)
        with pytest.raises(Damaged, match=r"seccomp\.img"):
            privileges.check(images, spec())

    def test_a_mountain_of_filters(self, tmp_path: Path) -> None:
        dump = Dump(tmp_path)
        dump.filters = [pb.SeccompFilter(filter=bytes(8))] * (1 << 16)
        privileges.check(dump.write(), spec())
        dump.filters.append(dump.filters[0])
        with pytest.raises(Damaged):
            privileges.check(dump.write(), spec())


class TestImages:
    def test_a_dead_process_is_nobody(self, tmp_path: Path) -> None:
        dump = Dump(tmp_path)
        dump.cores[1] = pb.Core(tc=pb.TaskCore(task_state=pb.TASK_ZOMBIE))
        dump.cores[1].thread_core = pb.ThreadCore(creds=pb.Creds())
        privileges.check(dump.write(), spec())

    @pytest.mark.parametrize("state", [0, 4, 5, 7])
    def test_a_state_that_is_none(self, tmp_path: Path, state: int) -> None:
        dump = Dump(tmp_path)
        dump.cores[1].tc = pb.TaskCore(task_state=state)
        with pytest.raises(Damaged, match=f"state {state}"):
            privileges.check(dump.write(), spec())

    @pytest.mark.parametrize("core", [pb.ThreadCore(), None])
    def test_without_creds_criu_would_leave_roots(
        self, tmp_path: Path, core: pb.ThreadCore | None
    ) -> None:
        images = Dump(tmp_path, 1, 7).write()
        header = (images / "core-7.img").read_bytes()[:8]
        record = pb.Core(thread_core=core).encode()
        (images / "core-7.img").write_bytes(header + len(record).to_bytes(4, "little") + record)
        with pytest.raises(Damaged, match=r"core-7\.img does not say who"):
            privileges.check(images, spec())

    @pytest.mark.parametrize("name", ["core-7.img", "pstree.img"])
    def test_an_image_that_is_missing(self, tmp_path: Path, name: str) -> None:
        images = Dump(tmp_path, 1, 7).write()
        (images / name).unlink()
        with pytest.raises(Damaged, match=name):
            privileges.check(images, spec())

    def test_an_image_that_is_no_file(self, tmp_path: Path) -> None:
        images = Dump(tmp_path).write()
        (images / "core-1.img").unlink()
        os.mkfifo(images / "core-1.img")
        with pytest.raises(Damaged, match=r"core-1\.img"):
            privileges.check(images, spec())

    def test_two_messages(self, tmp_path: Path) -> None:
        images = Dump(tmp_path).write()
        data = (images / "core-1.img").read_bytes()
        (images / "core-1.img").write_bytes(data + data[8:])
        with pytest.raises(Damaged, match="not one message"):
            privileges.check(images, spec())

    def test_one_thread_twice(self, tmp_path: Path) -> None:
        images = Dump(tmp_path).write()
        tree = [pb.Process(pid=1, threads=[1]), pb.Process(pid=2, ppid=1, threads=[2, 1])]
        for number in (1, 2):
            core = fake.core()
            Images(images).put(f"core-{number}.img", criu.CORE, core)
        Images(images).put("pstree.img", criu.PSTREE, *tree)
        with pytest.raises(Damaged, match="twice"):
            privileges.check(images, spec())

    def test_what_is_too_large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        images = Dump(tmp_path, 1, 7).write()
        monkeypatch.setattr(privileges, "_CORES_LIMIT", 150)
        with pytest.raises(Damaged, match="more than 150 bytes"):
            privileges.check(images, spec())
        monkeypatch.setattr(privileges, "_CORE_LIMIT", 50)
        with pytest.raises(Damaged, match=r"core-1\.img has .* bytes, more than 50"):
            privileges.check(images, spec())

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(Damaged):
            privileges.check(tmp_path / "none", spec())


def test_names_of_capabilities() -> None:
    every = capabilities.bits(capabilities.NAMES)
    assert every == (1 << 41) - 1
    assert capabilities.names(every) == list(capabilities.NAMES)
    assert capabilities.names(1 << 21 | 1 << 50) == ["CAP_SYS_ADMIN", "CAP_50"]
    assert capabilities.bits(["CAP_CHOWN", "CAP_OF_TOMORROW"]) == 1
    assert capabilities.words([1, 2]) == 1 | 2 << 32
