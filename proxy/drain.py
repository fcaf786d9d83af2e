"""Brings into the database what waits in the spool, and ends: `python -m proxy.drain [SECONDS]`.

For whoever must know that nothing of what was answered before is outside the database, erasure above all. Where a proxy runs, its
drainer does the work and this process only waits.
"""

import sys
import time
from pathlib import Path

from proxy.drainer import Drainer
from proxy.insert import Writer
from proxy.prices import Prices
from proxy.settings import ProxySettings
from proxy.spool import Folder
from store import teachers
from store.session import Database
from store.settings import load

_LOOK = 0.2  # seconds between two looks at the spool


def drain(db: Database, settings: ProxySettings, seconds: float) -> list[Path]:
    """Store what is there, for at most so long. Returns the segments of before that are still there: what is in them that has
    ended is in the database too, if the database took it.
    """
    root = settings.home_path / "spool"
    if not (before := _segments(root)):
        return []
    prices = Prices(teachers.read(settings).prices)
    drainer = Drainer(db, root, Writer(db, prices))
    give_up = time.monotonic() + seconds
    try:
        while True:
            drainer.turn()
            left = [path for path in before if path.exists()]
            if not left or time.monotonic() > give_up:
                return left
            time.sleep(_LOOK)
    finally:
        drainer.release()


def _segments(root: Path) -> list[Path]:
    return [path for folder in Folder.all(root) for path in folder.segments()]


def main() -> None:
    settings = load(ProxySettings)
    db = Database(settings.url)
    left = drain(db, settings, float(sys.argv[1]) if len(sys.argv) > 1 else 30.0)
    db.close()
    for path in left:
        print(path)


if __name__ == "__main__":
    main()
