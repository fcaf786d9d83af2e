"""`python -m tests.proxy.engine PORT VOICE PAUSE`: an engine, or a teacher, as a process of its own, to be stopped and killed.

Answers chat completions, completions and responses, whole or as a stream, in one word that it says WORDS times.
"""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from tests.proxy.upstream import Exchange, Upstream, json, stream

WORDS = 8


def whole(path: str, voice: str) -> dict[str, Any]:
    """An answer's body."""
    text, usage = f"{voice} " * WORDS, {"prompt_tokens": 3, "completion_tokens": WORDS, "total_tokens": 3 + WORDS}
    if path.endswith("/responses"):
        said = {"type": "message", "role": "assistant", "id": "m", "status": "completed", "content": [_part(text)]}
        return {"id": "r", "object": "response", "status": "completed", "model": "m", "output": [said]}
    choice = {"index": 0, "finish_reason": "stop"}
    if path.endswith("/chat/completions"):
        choice["message"] = {"role": "assistant", "content": text}
        return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return {
        "id": "c",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [{**choice, "text": text}],
        "usage": usage,
    }


def parts(path: str, voice: str) -> list[bytes]:
    """The events of a stream, one word each."""
    if path.endswith("/responses"):
        return _response(voice)
    chat = path.endswith("/chat/completions")
    said = [{"delta": {"content": f"{voice} "}} if chat else {"text": f"{voice} "} for _ in range(WORDS)]
    choices = [{"index": 0, "finish_reason": None, **word} for word in said]
    choices[-1]["finish_reason"] = "stop"
    head = {"id": "c", "object": "chat.completion.chunk" if chat else "text_completion", "created": 1, "model": "m"}
    return [*(_data({**head, "choices": [choice]}) for choice in choices), b"data: [DONE]\n\n"]


def _response(voice: str) -> list[bytes]:
    done = whole("/responses", voice)
    item = {"type": "message", "role": "assistant", "id": "m", "status": "in_progress", "content": []}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**done, "status": "in_progress", "output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        *({"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "item_id": "m", "delta": f"{voice} "}
          for _ in range(WORDS)),
        {"type": "response.output_item.done", "output_index": 0, "item": done["output"][0]},
        {"type": "response.completed", "response": done},
    ]  # fmt: skip
    return [f"event: {each['type']}\n".encode() + _data({**each, "sequence_number": n}) for n, each in enumerate(events)]


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def _data(event: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"


def speaks(voice: str, pause: float) -> Any:
    """A reply in one voice; `pause` between the events of a stream."""

    async def reply(exchange: Exchange) -> bool | None:
        path = exchange.seen.target
        if exchange.seen.json.get("stream"):
            return await stream(parts(path, voice), pause=pause)(exchange)
        return await json(whole(path, voice))(exchange)

    return reply


class Engine:
    """One such process, always on the same port."""

    def __init__(self, voice: str, pause: float = 0.0) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self._command = [sys.executable, "-m", "tests.proxy.engine", str(self.port), voice, str(pause)]
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._child = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        self._child.kill()
        self._child.communicate()

    def pause(self) -> None:
        self._child.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self._child.pid}/stat")
        while stat.read_text().rsplit(")", 1)[1].split()[0] != "T":  # it may still be answering
            time.sleep(0.001)

    def go_on(self) -> None:
        self._child.send_signal(signal.SIGCONT)


def main() -> None:
    server = Upstream(port=int(sys.argv[1]))
    server.reply = speaks(sys.argv[2], float(sys.argv[3]))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()  # until the one who has started it is gone


if __name__ == "__main__":
    main()
