"""captures take less room: what many have in common is a kind, bodies are packed with dictionaries, fewer indexes.

Captures that are there keep their bodies as they are. Each column that goes makes SQLite write the table once more.
"""

from collections.abc import Iterator
from itertools import pairwise

import sqlalchemy as sa
import zstandard
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

KIND: dict[str, tuple[sa.types.TypeEngine[object], bool, str | None]] = {  # type, nullable, value on the way down
    "task_id": (sa.String(40), False, ""),
    "endpoint": (sa.String(100), False, ""),
    "status": (sa.String(32), False, ""),
    "served_by": (sa.String(32), False, ""),
    "adapter_id": (sa.String(200), True, None),
    "model": (sa.String(200), False, ""),
    "stream": (sa.Boolean(), False, "0"),
    "http_status": (sa.Integer(), True, None),
    "finish_reason": (sa.String(40), True, None),
    "retry_count": (sa.Integer(), False, "0"),
}
PARTS = ("request", "response", "prompt_text", "answer_text")
MICROSECONDS = (
    "strftime('%s', substr(old_created_at, 1, 19)) * 1000000 + CAST(substr(old_created_at || '000000', 21, 6) AS INTEGER)"
)
TEXT = "strftime('%Y-%m-%d %H:%M:%S', old_created_at / 1000000, 'unixepoch') || printf('.%06d', old_created_at % 1000000)"
CAPTURES = sa.table("captures", *(sa.column(name) for name in ("id", "kind_id", "packed", *PARTS, *KIND)))
KINDS = sa.table("capture_kinds", *(sa.column(name) for name in ("id", "dictionary_id", *KIND)))
DICTIONARIES = sa.table("dictionaries", sa.column("id"), sa.column("packed"))


def upgrade() -> None:
    op.create_table(
        "dictionaries",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("task_id", sa.String(40), nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_dictionaries_task_id", "dictionaries", ["task_id"])
    if not (again := sa.inspect(op.get_bind()).has_table("capture_kinds")):
        _create_kinds()
    op.add_column("captures", sa.Column("packed", sa.LargeBinary(), nullable=True))
    if not again:
        op.execute("ALTER TABLE captures ADD COLUMN kind_id INTEGER REFERENCES capture_kinds (id)")
    op.execute(KINDS.insert().from_select(list(KIND), sa.select(*(CAPTURES.c[name] for name in KIND)).distinct()))
    op.execute(CAPTURES.update().values(kind_id=sa.select(KINDS.c.id).where(*_same()).scalar_subquery()))
    for index in ("captures_by_task", "ix_captures_status"):
        op.drop_index(index, "captures")
    for name in KIND:
        op.drop_column("captures", name)
    _change_times("BIGINT NOT NULL DEFAULT 0", MICROSECONDS)
    op.create_index("ix_captures_kind_id", "captures", ["kind_id"])


def downgrade() -> None:
    op.drop_index("ix_captures_kind_id", "captures")
    for name, (kind, nullable, value) in KIND.items():
        default = None if nullable else sa.false() if isinstance(kind, sa.Boolean) else value
        op.add_column("captures", sa.Column(name, kind, nullable=nullable, server_default=default))
    columns = {name: sa.select(KINDS.c[name]).where(KINDS.c.id == CAPTURES.c.kind_id).scalar_subquery() for name in KIND}
    op.execute(CAPTURES.update().values(columns))
    for id, parts in _unpacked(op.get_bind()):
        values = dict(zip(PARTS, (*parts[:2], *(text.decode("utf-8", "surrogatepass") for text in parts[2:])), strict=True))
        op.execute(CAPTURES.update().where(CAPTURES.c.id == id).values(values))
    _drop_kinds()
    op.drop_column("captures", "packed")
    _change_times("DATETIME NOT NULL DEFAULT ''", TEXT)
    op.create_index("captures_by_task", "captures", ["task_id", "id"])
    op.create_index("ix_captures_status", "captures", ["status"])
    op.drop_table("dictionaries")


def _create_kinds() -> None:
    op.create_table(
        "capture_kinds",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=True),
        *(sa.Column(name, kind, nullable=nullable) for name, (kind, nullable, _) in KIND.items()),
        sa.Column("dictionary_id", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["dictionary_id"], ["dictionaries.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("digest"),
    )
    op.create_index("ix_capture_kinds_task_id", "capture_kinds", ["task_id"])


def _same() -> list[sa.ColumnElement[bool]]:
    return [
        KINDS.c[name].is_not_distinct_from(CAPTURES.c[name]) if nullable else KINDS.c[name] == CAPTURES.c[name]
        for name, (_, nullable, _) in KIND.items()
    ]


def _drop_kinds() -> None:
    """SQLite drops no column with a foreign key: it stays, empty, and so does its table, until the way up takes them again."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute("UPDATE captures SET kind_id = NULL")
        op.execute("DELETE FROM capture_kinds")
    else:
        op.drop_column("captures", "kind_id")
        op.drop_table("capture_kinds")


def _change_times(column: str, value: str) -> None:
    """SQLite kept times as text, 26 bytes a time."""
    if op.get_bind().dialect.name != "sqlite":
        return
    op.drop_index("ix_captures_created_at", "captures")
    op.execute("ALTER TABLE captures RENAME COLUMN created_at TO old_created_at")
    op.execute(f"ALTER TABLE captures ADD COLUMN created_at {column}")
    op.execute(f"UPDATE captures SET created_at = {value}")  # noqa: S608
    op.drop_column("captures", "old_created_at")
    op.create_index("ix_captures_created_at", "captures", ["created_at"])


def _unpacked(bind: sa.Connection) -> Iterator[tuple[str, list[bytes]]]:
    """Ids and parts of the packed captures, as they were packed when this was written."""
    form = zstandard.FORMAT_ZSTD1_MAGICLESS
    dictionaries = {
        row.id: zstandard.ZstdCompressionDict(zstandard.ZstdDecompressor().decompress(row.packed))
        for row in bind.execute(sa.select(DICTIONARIES.c.id, DICTIONARIES.c.packed))
    }
    packed = sa.select(CAPTURES.c.id, CAPTURES.c.packed, KINDS.c.dictionary_id).join(KINDS, KINDS.c.id == CAPTURES.c.kind_id)
    after = ""
    while rows := bind.execute(
        packed.where(CAPTURES.c.packed.is_not(None), CAPTURES.c.id > after).order_by(CAPTURES.c.id).limit(500)
    ).all():
        for row in rows:
            whole = zstandard.ZstdDecompressor(dict_data=dictionaries.get(row.dictionary_id), format=form).decompress(row.packed)
            at, sizes = 0, []
            for _ in range(3):
                size = shift = 0
                while True:
                    size |= (whole[at] & 127) << shift
                    shift, at = shift + 7, at + 1
                    if whole[at - 1] < 128:
                        break
                sizes.append(size)
            edges = [at, at + sizes[0], at + sum(sizes[:2]), at + sum(sizes), len(whole)]
            yield row.id, [whole[begin:end] for begin, end in pairwise(edges)]
            after = row.id
