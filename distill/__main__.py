"""`python -m distill`: gathers pairs and turns the wheel of every task until it is told to stop."""

import logging
import signal
import threading

from distill import scheduler
from distill.settings import DistillSettings
from store import migrate
from store.session import Database
from store.settings import load


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # that a turn is still under way is no news
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = load(DistillSettings)
    db = Database(settings.url)
    migrate.upgrade(db)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    scheduler.run(db, settings, stop)


if __name__ == "__main__":
    main()
