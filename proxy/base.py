"""Where an API is."""

import httpx


class Base:
    """Where an API begins, such as https://api.openai.com/v1."""

    def __init__(self, url: str) -> None:
        self.url = httpx.URL(url.rstrip("/"))
        self.path = self.url.raw_path.rstrip(b"/")
        self.host = self.url.netloc
        tls = self.url.scheme == "https"
        self.name = self.host.decode()  #: what a message may show: no path, no user, no password
        self.origin = (self.url.host, self.url.port or (443 if tls else 80), tls)

    def __str__(self) -> str:
        return self.name
