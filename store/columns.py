"""Column types that read the same on SQLite and on PostgreSQL."""

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeDecorator

from store.states import State

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
# What a chat template renders: PostgreSQL's JSONB would sort the keys, and a tool's schema would become other tokens.
OrderedJson = sa.JSON()
# SQLite counts rows by itself only in a column declared INTEGER.
BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
EPOCH, MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in, aware UTC datetimes out; SQLite alone would give them back naive."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without a time zone cannot be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Instant(UtcDateTime):
    """The same in eight bytes: microseconds since 1970 on SQLite, whose own way is 26 letters."""

    impl = UtcDateTime.impl
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        return dialect.type_descriptor(sa.BigInteger()) if dialect.name == "sqlite" else super().load_dialect_impl(dialect)

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> Any:
        bound = super().process_bind_param(value, dialect)
        return bound if bound is None or dialect.name != "sqlite" else (bound - EPOCH) // MICROSECOND

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
        return EPOCH + value * MICROSECOND if isinstance(value, int) else super().process_result_value(value, dialect)


class StateText(TypeDecorator[State]):
    """A `State` kept as plain text, so that adding a state needs no change of the schema."""

    impl = sa.String(32)
    cache_ok = True

    def __init__(self, states: type[State]) -> None:
        super().__init__()
        self.states = states

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        return None if value is None else self.states(value).value  # type: ignore[call-arg]

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> State | None:
        return None if value is None else self.states(value)  # type: ignore[call-arg]


def now() -> datetime:
    """The time, aware, in UTC."""
    return datetime.now(UTC)
