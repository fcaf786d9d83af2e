"""`python -m proxy.worker FD PARENT`: one worker, which serves on a socket that `python -m proxy` has bound."""

import logging
import signal
import socket
import sys

import uvicorn

from proxy.app import Proxy
from proxy.server import Connection
from proxy.settings import ProxySettings
from store import children
from store.settings import load

DRAIN_SECONDS = 30
KEEP_ALIVE_SECONDS = 75  # longer than clients keep idle connections, so that they are the ones to close them


def make_server(settings: ProxySettings) -> uvicorn.Server:
    """The server as it runs in production. Raises OSError if the spool cannot be made."""
    return uvicorn.Server(
        uvicorn.Config(
            Proxy(settings),
            host=settings.proxy_host,
            port=settings.proxy_port,
            loop="uvloop",
            http=Connection,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # nobody asks for the client's address
            server_header=False,
            date_header=False,
            backlog=2048,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
    )


def configure_logging() -> None:
    """As all processes of the proxy log."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "httpcore", "alembic", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def main() -> None:
    fd, parent = (int(each) for each in sys.argv[1:])
    children.follow(parent)
    configure_logging()
    # The server raises the signal again once it is down: that is a clean end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    make_server(load(ProxySettings)).run([socket.socket(fileno=fd)])


if __name__ == "__main__":
    main()
