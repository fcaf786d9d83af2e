"""A vLLM server as its clients see it: stateless, thread-safe, with errors that tell what kind of trouble it is.

StudentError
├── StudentDown      nobody answers, or the engine behind the server is dead: try again when it is back
│   └── StudentSlow  no answer in time: it may be the question's fault, `probe` tells
├── AdapterMissing   the server has no model of that name (yet)
└── StudentRefused   the server is well and will not do this
"""

from types import TracebackType
from typing import Any, Self

import httpx

Body = dict[str, Any]


class StudentError(Exception):
    """What was asked of vLLM was not done; the message says why."""


class StudentDown(StudentError):
    """vLLM does not answer, or says that its engine is dead."""


class StudentSlow(StudentDown):
    """vLLM took the request and did not answer it in time."""


class AdapterMissing(StudentError):
    """vLLM knows no model or file of that name."""


class StudentRefused(StudentError):
    """vLLM answered, and will not do this."""


class StudentServer:
    """One vLLM server. `url` is without /v1; `timeout` is in seconds, for one answer."""

    def __init__(self, url: str, *, timeout: float = 120.0, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        self._client = httpx.Client(
            base_url=self.url, timeout=httpx.Timeout(timeout, connect=5.0), limits=limits, transport=transport, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def health(self) -> bool:
        """Whether the server listens and thinks itself well. It also says so with a hung engine: see `probe`."""
        try:
            return self._client.get("/health", timeout=5.0).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def probe(self, model: str, timeout: float = 60.0) -> None:
        """Have one token generated. Raises StudentError if that does not work within `timeout` seconds."""
        self._send("POST", "/v1/completions", {"model": model, "prompt": ".", "max_tokens": 1}, timeout=timeout)

    def models(self) -> list[str]:
        """Names of everything that can be asked, the base model's included. Raises StudentError."""
        return [card["id"] for card in self._cards()]

    def base(self) -> str:
        """The base model's name. Raises StudentError."""
        for card in self._cards():
            if card.get("parent") is None:
                return str(card["id"])
        raise StudentRefused(f"the server at {self.url} serves no base model")

    def context(self) -> int | None:
        """Tokens of a prompt and its answer together; None if the server does not say. Raises StudentError."""
        known = [card.get("max_model_len") for card in self._cards() if card.get("parent") is None]
        return next((length for length in known if isinstance(length, int)), None)

    def load(self, name: str, path: str) -> None:
        """Load the adapter folder `path` under `name`; nothing happens if the name is loaded already. Raises StudentError."""
        try:
            self._send("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        except StudentRefused as refused:
            if "already been loaded" not in str(refused):
                raise

    def unload(self, name: str) -> None:
        """Take an adapter off the list; requests under way are answered. Not there: nothing happens. Raises StudentError."""
        try:
            self._send("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        except AdapterMissing:
            return

    def tokenize(self, model: str, messages: list[Body], tools: list[Body] | None = None) -> list[int]:
        """The ids of the prompt that a chat completion with these messages and tools begins with. Raises StudentError."""
        body: Body = {"model": model, "messages": messages, "add_generation_prompt": True}
        answer = self._send("POST", "/tokenize", body | ({"tools": tools} if tools else {}))
        return [int(token) for token in answer["tokens"]]

    def complete(self, body: Body) -> Body:
        """The answer to a chat completion request that is not streamed. Raises StudentError."""
        return self._send("POST", "/v1/chat/completions", body)

    def _cards(self) -> list[Body]:
        data = self._send("GET", "/v1/models", timeout=10.0).get("data")
        return data if isinstance(data, list) else []

    def _send(self, method: str, path: str, body: Body | None = None, *, timeout: float | None = None) -> Body:
        try:
            request = self._client.build_request(method, path, json=body)
            if timeout is not None:
                request.extensions["timeout"] = httpx.Timeout(timeout, connect=5.0).as_dict()
            response = self._client.send(request)
        except httpx.ConnectTimeout as error:
            raise StudentDown(f"vLLM at {self.url} cannot be reached in time") from error
        except httpx.TimeoutException as error:
            raise StudentSlow(f"vLLM at {self.url} did not answer {path} in time") from error
        except httpx.TransportError as error:
            raise StudentDown(f"vLLM at {self.url} cannot be reached: {error}") from error
        if response.is_success:
            return _json(response) if response.headers.get("content-type", "").startswith("application/json") else {}
        raise _error(response)


def _error(response: httpx.Response) -> StudentError:
    problem = _json(response).get("error")
    message = problem.get("message") if isinstance(problem, dict) else None
    text = f"vLLM said {response.status_code}: {str(message or response.text)[:1000].strip()}"
    if response.status_code == httpx.codes.NOT_FOUND:
        return AdapterMissing(text)
    dead = response.status_code in {httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT}
    return StudentDown(text) if dead or "EngineDead" in text or "EngineCore encountered" in text else StudentRefused(text)


def _json(response: httpx.Response) -> Body:
    try:
        data = response.json()
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
