"""What goes wrong.

Refusal                 an HTTP answer made here, in OpenAI's shape: status and {"error": {message, type, param, code}}
UpstreamError           no answer of an upstream, or not all of it; the text is fit for a client to read
├── Unreachable         no connection could be made
├── TimedOut            connected, then silent for too long
├── Broken              the connection was lost, or what came is no HTTP
└── Unsendable          the request cannot be written as HTTP/1.1
"""

import orjson


class Refusal(Exception):
    """An error answer of the proxy's own. The message says what to do and holds no secret."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param

    @property
    def body(self) -> bytes:
        """The answer's JSON body."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return orjson.dumps({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})


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
