"""Whether the database is at the schema this version knows."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

from admin.problems import Invalid, Unavailable, not_installed
from store import migrate
from store.session import Database
from store.settings import StoreSettings


@dataclass(frozen=True)
class Schema:
    """Where a database is, and where it should be."""

    current: str | None  #: None: nothing is in it yet
    head: str
    known: bool  #: whether this version knows `current` at all


def look(db: Database) -> Schema:
    """Read only, so that it never waits for a writer."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parents[1] / "migrations"))
    scripts = ScriptDirectory.from_config(config)
    with db.read() as session:
        current = MigrationContext.configure(session.connection()).get_current_revision()
    head = scripts.get_current_head()
    assert head is not None
    return Schema(current, head, current is None or current in {script.revision for script in scripts.walk_revisions()})


def bring_up_to_date(db: Database) -> None:
    """Migrate what is not migrated yet. Raises Unavailable for a newer stillroom's database, and for a file that is none."""
    try:
        schema = look(db)
    except OperationalError:
        raise
    except DatabaseError as error:
        raise Unavailable(f"The database cannot be read: {str(error.orig).strip()}", "no_database") from error
    if not schema.known:
        says = f"The database's schema ({schema.current}) is of a newer stillroom: upgrade this one, or take another database."
        raise Unavailable(says, "newer_schema")
    if schema.current != schema.head:
        migrate.upgrade(db)


@contextmanager
def opened(settings: StoreSettings, *, upgrade: bool = True) -> Iterator[Database]:
    """The database, brought up to date if it is not and may be. Raises Unavailable or Invalid, with what to do."""
    try:
        db = Database(settings.url)
    except ModuleNotFoundError as missing:
        raise not_installed(f"The database's driver ({missing.name})") from missing
    except ArgumentError as error:
        says = "STILLROOM_DATABASE_URL is no database URL, such as postgresql://user:password@host/name."
        raise Invalid(says, "bad_url") from error
    except OSError as error:
        raise Unavailable(f"The folder {settings.home_path} cannot be used: {error}. Set STILLROOM_HOME.", "no_home") from error
    try:
        if upgrade:
            bring_up_to_date(db)
        yield db
    except OperationalError as error:
        where = db.engine.url.render_as_string(hide_password=True)
        raise Unavailable(f"The database {where} does not answer: {str(error.orig).strip()}", "no_database") from error
    finally:
        db.close()
