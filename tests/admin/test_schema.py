"""Opening a database: brought up to date, or told why not."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from admin import schema
from admin.problems import Unavailable
from store.session import Database
from store.settings import StoreSettings


def test_an_empty_database_is_brought_up_to_date(blank: Database) -> None:
    before = schema.look(blank)
    assert (before.current, before.known) == (None, True)
    schema.bring_up_to_date(blank)
    assert schema.look(blank).current == before.head


def test_a_newer_stillrooms_database_is_left_alone(blank: Database) -> None:
    schema.bring_up_to_date(blank)
    with blank.begin() as session:
        session.connection().execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Unavailable, match="newer stillroom: upgrade this one"):
        schema.bring_up_to_date(blank)


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "stillroom.db").write_text("something else entirely, and longer than a header would be")
    with pytest.raises(Unavailable, match="file is not a database"), schema.opened(StoreSettings(home=tmp_path, database_url=None)):
        pass
