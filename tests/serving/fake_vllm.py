"""A stand-in for vLLM as the serving room sees it: the same endpoints and errors, and ways to make it fail.

    python fake_vllm.py --port N [--model NAME] [--mute] [--crash TEXT]

`POST /fake` sets a behaviour: {"hang": true} answers no completion, {"dead": true} is vLLM with a dead engine, {"refuse": "why"}
loads nothing. `GET /fake` tells what was asked of it. Like vLLM it has an engine process, which outlives it when it is killed.
The standard library alone, so that it starts in a blink.
"""

import argparse
import json
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answer = tuple[int, Any]
DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class Fake:
    """What it has loaded, what it was asked, how it behaves."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.behaviour: dict[str, Any] = {}
        self.loaded: dict[str, str] = {}
        self.calls: list[list[str]] = []

    def answer(self, path: str, body: dict[str, Any]) -> Answer:
        """(status, what is sent) for a request."""
        match path:
            case "/health":
                return 200, ""
            case "/fake":
                self.behaviour.update(body)
                return 200, {"calls": self.calls, "loaded": self.loaded}
            case "/v1/models":
                cards = [{"id": self.model, "root": "/base", "parent": None, "max_model_len": 512}]
                return 200, {
                    "data": [*cards, *({"id": name, "root": root, "parent": self.model} for name, root in self.loaded.items())]
                }
            case "/v1/load_lora_adapter":
                return self.load(body["lora_name"], body["lora_path"])
            case "/v1/unload_lora_adapter":
                return self.unload(body["lora_name"])
            case "/v1/completions" | "/v1/chat/completions":
                return self.complete(body["model"])
            case "/tokenize":
                return 200, {"count": 2, "tokens": [len(body["messages"]), len(body.get("tools") or [])]}
        return error(404, f"there is no {path}")

    def load(self, name: str, path: str) -> Answer:
        self.calls.append(["load", name])
        if self.behaviour.get("dead"):
            return error(500, DEAD)
        if self.behaviour.get("refuse"):
            return error(500, self.behaviour["refuse"])
        if name in self.loaded:
            return error(400, f"The lora adapter '{name}' has already been loaded.")
        if not Path(path).is_dir():
            return error(404, f"No adapter found for '{path}'")
        self.loaded[name] = path
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, name: str) -> Answer:
        self.calls.append(["unload", name])
        if self.loaded.pop(name, None) is None:
            return error(404, f"The lora adapter '{name}' cannot be found.")
        return 200, f"Success: LoRA adapter '{name}' removed successfully."

    def complete(self, model: str) -> Answer:
        self.calls.append(["complete", model])
        if self.behaviour.get("hang"):
            time.sleep(3600)
        if self.behaviour.get("dead"):
            return error(500, DEAD)
        if model not in {self.model, *self.loaded}:
            return error(404, f"The model `{model}` does not exist.")
        message = {"role": "assistant", "content": f"I am {model}"}
        return 200, {"model": model, "choices": [{"index": 0, "message": message, "text": "!", "finish_reason": "stop"}]}


def error(status: int, message: str) -> Answer:
    return status, {"error": {"message": message, "type": "error", "param": None, "code": status}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--mute", action="store_true")
    parser.add_argument("--crash", default="")
    given = parser.parse_args()
    if given.crash:
        sys.exit(f"(EngineCore pid=7) ValueError: {given.crash}")
    fake = Fake(given.model)
    engine = subprocess.Popen(["sleep", "600"])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            status, said = fake.answer(self.path, json.loads(self.rfile.read(length) or b"{}"))
            sent = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-type", "text/plain" if isinstance(said, str) else "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    try:
        if given.mute:
            engine.wait()
        ThreadingHTTPServer(("127.0.0.1", given.port), Handler).serve_forever()
    finally:
        engine.terminate()


if __name__ == "__main__":
    main()
