"""The vLLM worker of tests/gpu: its model's folder, and what Thaw is told of its sleep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gpu import vllm as module
from gpu.two import minors
from gpu.vllm import vllm, write_model

from shim.annotations import TABLE


def test_a_model_folder(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "0.6B")
    told = {path.name: json.loads(path.read_text()) for path in (tmp_path / "model").iterdir()}
    assert sorted(told) == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    assert told["config.json"]["hidden_size"] == 1024
    words = told["tokenizer.json"]["model"]["vocab"]
    assert len(words) == told["config.json"]["vocab_size"]
    assert words["t7"] == 7


@pytest.mark.parametrize("sleep", [False, True])
def test_a_worker(sleep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MODELS", tmp_path / "models")
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    subject = vllm("8B", "/site", sleep=sleep)
    assert subject.name == ("vllm-8b-sleep" if sleep else "vllm-8b")
    assert ("--enable-sleep-mode" in subject.words) is sleep
    assert bool(subject.annotations) is sleep
    assert set(subject.annotations) <= {row.key for row in TABLE}
    assert subject.environment["PYTHONPATH"] == "/site"
    assert all(folder.is_dir() for folder in subject.writable)


def test_minor_numbers(tmp_path: Path) -> None:
    for name in ("nvidia10", "nvidia0", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert minors(tmp_path) == ["0", "2", "10"]
