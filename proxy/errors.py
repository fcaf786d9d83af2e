"""What the proxy itself says when there is no teacher's answer to pass on, in OpenAI's shape.

Refusal                 an HTTP answer made here: status and {"error": {message, type, param, code}}
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
