"""`python -m serving`: vLLM with the adapters that the rows ask for, until it is told to stop."""

import fcntl
import logging
import signal
import sys
import threading

from serving.settings import ServingSettings
from serving.worker import Worker
from store.session import Database
from store.settings import load


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    settings = load(ServingSettings)
    settings.home_path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (settings.home_path / "serving.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"`stillroom serving` runs already in {settings.home_path}: stop it, or set STILLROOM_HOME.")
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        db = Database(settings.url)
        try:
            Worker(db, settings).run(stop)
        finally:
            db.close()


if __name__ == "__main__":
    main()
