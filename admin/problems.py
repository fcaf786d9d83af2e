"""What can go wrong between a person and the house. One tree, one shape; the API and the command line show the same words.

Problem
├── Unauthorized   401  no token, or one that is not known
├── NotFound       404  no such task, capture, run, ...
├── Conflict       409  it cannot be done as things are now
├── Invalid        422  what was given cannot be used
└── Unavailable    503  something this needs is not installed, or does not answer
"""


class Problem(Exception):
    """Something asked for cannot be done; the message says why and what to do."""

    status = 400
    type = "invalid_request_error"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.message, self.code = message, code

    @property
    def body(self) -> dict[str, dict[str, str]]:
        return {"error": {"message": self.message, "type": self.type, "code": self.code}}


class Unauthorized(Problem):
    status = 401
    type = "authentication_error"


class NotFound(Problem):
    status = 404
    type = "not_found_error"


class Conflict(Problem):
    status = 409
    type = "conflict_error"


class Invalid(Problem):
    status = 422


class Unavailable(Problem):
    status = 503
    type = "unavailable_error"


#: How to get what is missing. Only uv knows what must be left out, and stillroom is on no index.
INSTALL = "in the checkout: make setup (with a GPU, or by hand: deploy/README.md)"


def not_installed(what: str) -> Unavailable:
    """A part of stillroom whose packages are missing, and what installs them."""
    return Unavailable(f"{what} is not installed here; {INSTALL}", "not_installed")
