"""What goes wrong.

Refusal                 an HTTP answer made here, in OpenAI's shape: status, headers and {"error": {message, type, param, code}}
UpstreamError           no answer of an upstream, or not all of it; the text is fit for a client to read
├── Unreachable         no connection could be made
├── TimedOut            connected, then silent for too long
├── Broken              the connection was lost, or what came is no HTTP
└── Unsendable          the request cannot be written as HTTP/1.1
"""

from collections.abc import Sequence

import orjson


class Refusal(Exception):
    """An error answer of the proxy's own. The message says what to do and holds no secret.

    `kind` is OpenAI's "type" where it does not follow from the status; `headers` are sent beside content-type and content-length.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        *,
        kind: str | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.kind = kind or ("invalid_request_error" if status < 500 else "server_error")
        self.headers = headers

    @property
    def body(self) -> bytes:
        """The answer's JSON body."""
        return orjson.dumps({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})


class UpstreamError(Exception):
    """The upstream gave no answer, or not all of it."""


class Unreachable(UpstreamError):
    """No connection could be made."""


class TimedOut(UpstreamError):
    """Connected, then silent for too long."""


class Broken(UpstreamError):
    """The connection was lost, or what came is no HTTP."""


class Unsendable(UpstreamError):
    """The request cannot be written as HTTP/1.1."""
