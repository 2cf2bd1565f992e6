"""An example worker: a language model behind uvicorn with an OpenAI-style `/v1/completions`.

The weights are random, from a fixed seed and a config object, so nothing is downloaded and two
servers answer alike, token by token (decoding is greedy). What a real server does when it starts is
done here too: imports, the model's memory, a first request as warm-up. It prints "ready" when it
listens.

It knows nothing of Thaw.

    python server.py                     listens on 0.0.0.0:8000
    GET  /health                         200
    GET  /v1/models
    POST /v1/completions                 {"prompt": "text" or [token ids], "max_tokens": 16}
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import torch
import uvicorn
from transformers import LlamaConfig, LlamaForCausalLM

NAME = "random-llama"
SEED = 20250101
PORT = int(os.environ.get("PORT", "8000"))
THREADS = int(os.environ.get("THREADS", "4"))
MAX_TOKENS = 256

# About 170 million parameters: 0.65 GiB in 32-bit floats.
CONFIG = LlamaConfig(
    vocab_size=259,  # the bytes, and three marks
    hidden_size=1024,
    intermediate_size=3584,
    num_hidden_layers=12,
    num_attention_heads=16,
    num_key_value_heads=8,
    max_position_embeddings=2048,
    initializer_range=0.05,  # wide enough that the likeliest token changes as it goes
)
BEGIN = 256  # token ids: a byte stands for itself

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class BadRequest(Exception):
    """The request cannot be answered; the text says why."""


def load() -> LlamaForCausalLM:
    """The model with its random weights; the same ones at every start."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    return LlamaForCausalLM(CONFIG).eval()


def encode(prompt: str | list[Any]) -> list[int]:
    """Token ids of a prompt: of its bytes, or as they were given."""
    if isinstance(prompt, str):
        return [BEGIN, *prompt.encode()]
    if not prompt or not all(isinstance(t, int) and 0 <= t < CONFIG.vocab_size for t in prompt):
        raise BadRequest(f"prompt must be text or token ids below {CONFIG.vocab_size}")
    return prompt


def decode(tokens: list[int]) -> str:
    """The text of token ids; bytes that are no text are shown as such."""
    return bytes(t for t in tokens if t < BEGIN).decode(errors="backslashreplace")


@torch.inference_mode()
def generate(model: LlamaForCausalLM, tokens: list[int], count: int) -> list[int]:
    """The `count` likeliest next tokens, one by one."""
    new: list[int] = []
    given, past = torch.tensor([tokens]), None
    for _ in range(count):
        answer = model(given, past_key_values=past, use_cache=True)
        given, past = answer.logits[:, -1:].argmax(-1), answer.past_key_values
        new.append(int(given))
    return new


class Server:
    """The ASGI application."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self._model = model
        self._turn = asyncio.Lock()  # one generation at a time: it uses all threads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        try:
            status, body = await self._answer(scope["method"], scope["path"], receive)
        except (BadRequest, ValueError) as error:
            status, body = 400, {"error": {"message": str(error), "type": "invalid_request_error"}}
        content = json.dumps(body).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, method: str, path: str, receive: Receive) -> tuple[int, dict[str, Any]]:
        match method, path:
            case "GET", "/health":
                return 200, {}
            case "GET", "/v1/models":
                return 200, {"object": "list", "data": [{"id": NAME, "object": "model"}]}
            case "POST", "/v1/completions":
                return 200, await self._complete(json.loads(await _body(receive)))
        return 404, {"error": {"message": f"no such path: {path}", "type": "not_found"}}

    async def _complete(self, request: dict[str, Any]) -> dict[str, Any]:
        prompt = encode(request.get("prompt", ""))
        count = int(request.get("max_tokens", 16))
        if not 0 < count <= MAX_TOKENS:
            raise BadRequest(f"max_tokens must be 1 to {MAX_TOKENS}")
        async with self._turn:
            new = await asyncio.to_thread(generate, self._model, prompt, count)
        text, used = decode(new), {"prompt_tokens": len(prompt), "completion_tokens": count}
        choice = {"index": 0, "text": text, "token_ids": new, "finish_reason": "length"}
        used["total_tokens"] = len(prompt) + count
        about = {"object": "text_completion", "created": int(time.time()), "model": NAME}
        return {**about, "choices": [choice], "usage": used}


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


class Announcing(uvicorn.Server):
    """uvicorn that says when it listens."""

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Bind, then say so."""
        await super().startup(sockets)
        print("ready", flush=True)


def main() -> None:
    """Load, warm up, serve."""
    model = load()
    generate(model, encode("warm up"), 8)
    # Its log goes to stdout; the plain asyncio loop and h11, so that no compiled server is needed.
    log = uvicorn.config.LOGGING_CONFIG
    log["handlers"]["default"]["stream"] = "ext://sys.stdout"
    settings = uvicorn.Config(
        Server(model),
        host="0.0.0.0",  # noqa: S104 - the pod's address
        port=PORT,
        loop="asyncio",
        http="h11",
        lifespan="off",
        log_config=log,
    )
    Announcing(settings).run()


if __name__ == "__main__":
    main()
