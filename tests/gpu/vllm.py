"""A real vLLM as a worker: its server with a model of random weights (`--load-format dummy`).

With `sleep` its own sleep and wake-up are asked for by Thaw's annotations: level 1 moves the
weights into host memory and gives the memory of its cache back, so that a snapshot has neither on
the GPU. Where it is: a folder that Python shall look in (--vllm-site), or the Python of --python.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bed.fetch import cache_folder
from gpu.shapes import HEAD, SHAPES, VOCABULARY
from gpu.subject import PORT, Subject

MODELS = cache_folder() / "gpu-models"
CACHE = cache_folder() / "gpu-compiled"  # what vLLM compiles: shared, as on a node
PROMPT = [785, 6722, 315, 9625, 374, 264, 3283]
TOKENS = 16
ENVIRONMENT = {
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_SERVER_DEV_MODE": "1",  # /sleep and /wake_up
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",  # where its processes meet: no address of a pod
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_CACHE_ROOT": str(CACHE / "vllm"),
    "TRITON_CACHE_DIR": str(CACHE / "triton"),
    "TORCHINDUCTOR_CACHE_DIR": str(CACHE / "inductor"),
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}
# Of the GPU's memory, by shape: with sleep all that a node would give it.
SHARES = {False: "0.28", True: "0.5"}
_SLEEPS = {
    "thaw.dev/quiesce": f"http:{PORT}/sleep?level=1",
    "thaw.dev/resume": f"http:{PORT}/wake_up",
    "thaw.dev/quiesce-timeout": "60",
    "thaw.dev/resume-timeout": "60",
}


def vllm(shape: str, site: str, *, sleep: bool) -> Subject:
    """The worker; its model's folder is written if it is not there."""
    model = MODELS / shape
    if not (model / "config.json").exists():
        write_model(model, shape)
    CACHE.mkdir(parents=True, exist_ok=True)
    words = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    words += ["--served-model-name", "model", "--load-format", "dummy", "--port", str(PORT)]
    words += ["--host", "0.0.0.0", "--gpu-memory-utilization", SHARES[sleep]]
    words += ["--max-model-len", "4096", "--max-num-seqs", "32"]
    words += ["--enable-sleep-mode"] if sleep else []
    question = {"model": "model", "prompt": PROMPT, "temperature": 0, "ignore_eos": True}
    return Subject(
        name=f"vllm-{shape.lower()}{'-sleep' if sleep else ''}",
        words=tuple(words),
        same=("text",),
        first="/v1/completions",
        whole="/v1/completions",
        environment={**ENVIRONMENT, **({"PYTHONPATH": site} if site else {})},
        folders=(model, *([Path(site)] if site else [])),
        writable=(CACHE,),
        annotations=_SLEEPS if sleep else {},
        starting=240.0,
        body={**question, "max_tokens": TOKENS},
    )


def write_model(folder: Path, shape: str) -> None:
    """A folder that transformers and vLLM read: token number i is the word ti."""
    chosen = SHAPES[shape]
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": chosen.hidden,
        "intermediate_size": chosen.intermediate,
        "num_hidden_layers": chosen.layers,
        "num_attention_heads": chosen.heads,
        "num_key_value_heads": chosen.shared,
        "tie_word_embeddings": chosen.tied,
        "head_dim": HEAD,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 40960,
        "max_window_layers": chosen.layers,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "initializer_range": 0.02,
        "use_cache": True,
        "use_sliding_window": False,
    }
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "t0",
        "bos_token": "t151643",
        "eos_token": "t151645",
        "model_max_length": 40960,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer()))


def _tokenizer() -> dict[str, Any]:
    """As the library tokenizers would save it."""
    words = {f"t{number}": number for number in range(VOCABULARY)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "t0"},
    }
