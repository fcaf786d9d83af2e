"""`python -m admin`: the admin API, until it is told to stop."""

import logging
import sys

import uvicorn

from admin import auth, schema
from admin.app import build
from admin.problems import Problem
from admin.settings import AdminSettings
from store.session import Database
from store.settings import load


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    settings = load(AdminSettings)
    try:
        with schema.opened(settings) as db:
            _serve(db, settings)
    except Problem as problem:
        sys.exit(f"Error: {problem.message}")


def _serve(db: Database, settings: AdminSettings) -> None:
    if sys.stdout.isatty():  # a token belongs on a terminal, never in a log
        with db.begin() as session:
            token = auth.make_first(session, by="first start")
        if token is not None:
            print(f"Your admin token, shown only now: {token}")
    with db.read() as session:
        if not auth.tokens(session):
            logging.getLogger("stillroom.admin").warning("There is no admin token yet. %s", auth.HOW)
    uvicorn.run(
        build(db, settings),
        host=settings.admin_host,
        port=settings.admin_port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=10,
    )


if __name__ == "__main__":
    main()
