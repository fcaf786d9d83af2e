"""A capture: its own row, its kind, which it shares with others, and the dictionary its bodies are packed with."""

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Any, Generic, Self, TypeVar, cast, overload

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Mapper, registry, relationship
from sqlmodel import Field, Session, SQLModel

from store import blobs
from store.columns import Instant, Json, StateText, UtcDateTime, now
from store.states import CaptureStatus, Server

T = TypeVar("T")


class Dictionary(SQLModel, table=True):
    """What a task's exchanges have in common, to pack their bodies with. Immutable; made by `store.packing`."""

    __tablename__ = "dictionaries"
    #: the first 63 bits of the content's SHA-256
    id: int = Field(primary_key=True, sa_type=sa.BigInteger, sa_column_kwargs={"autoincrement": False})
    task_id: str = Field(index=True, max_length=40)
    packed: bytes = Field(sa_type=sa.LargeBinary)  #: the content: `store.blobs.seal`; empty once nothing needs what was withdrawn
    withdrawn: bool = Field(default=False)  #: no writer uses it any more
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)

    @classmethod
    def of(cls, task_id: str, content: bytes) -> Self:
        """A task's dictionary with this content."""
        return cls(id=blobs.name(content), task_id=task_id, packed=blobs.seal(content))

    def content(self) -> bytes:
        """The dictionary itself. Raises BadFrame if it is not what it was."""
        return blobs.unseal(self.packed, self.id)


class CaptureKind(SQLModel, table=True):
    """What many captures have in common, kept once. Written with them, by `store.captures`; never changed."""

    __tablename__ = "capture_kinds"
    id: int | None = Field(default=None, primary_key=True)
    digest: bytes | None = Field(default=None, sa_type=sa.LargeBinary, unique=True)  #: of all that follows
    task_id: str = Field(max_length=40, index=True)
    endpoint: str = Field(max_length=100)
    status: CaptureStatus = Field(sa_type=StateText(CaptureStatus))
    served_by: Server = Field(sa_type=StateText(Server))
    adapter_id: str | None = Field(default=None, max_length=200)
    model: str = Field(default="", max_length=200)
    stream: bool = False
    http_status: int | None = None
    finish_reason: str | None = Field(default=None, max_length=40)
    retry_count: int = 0
    key_id: str | None = Field(default=None, max_length=40)
    teacher: str | None = Field(default=None, max_length=100)
    dictionary_id: int | None = Field(default=None, sa_type=sa.BigInteger, foreign_key="dictionaries.id")


class CaptureRow(SQLModel, table=True):
    """What is a capture's own. Read as `Capture`."""

    __tablename__ = "captures"
    id: str = Field(primary_key=True, max_length=40)
    created_at: datetime = Field(default_factory=now, sa_type=Instant, index=True)
    kind_id: int | None = Field(default=None, foreign_key="capture_kinds.id", index=True)
    fallback: str | None = Field(default=None, max_length=200)
    request: bytes = Field(default=b"", sa_type=sa.LargeBinary)  #: this and the next three are empty where they are packed
    response: bytes = Field(default=b"", sa_type=sa.LargeBinary)
    prompt_text: str = Field(default="", sa_type=sa.Text)
    answer_text: str = Field(default="", sa_type=sa.Text)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_byte_ms: float | None = None
    duration_ms: float | None = None
    error: str | None = Field(default=None, sa_type=sa.Text)
    meta: dict[str, Any] = Field(default_factory=dict, sa_type=Json)
    cost_usd: float | None = None
    packed: bytes | None = Field(default=None, sa_type=sa.LargeBinary)  #: all four: `store.blobs`


class _Part(Generic[T]):
    """A body or text of a capture, unpacked when it is read. It is no column: a query cannot ask for it."""

    def __init__(self, number: int, read: Callable[[bytes], T], write: Callable[[T], bytes]) -> None:
        self._number, self._read, self._write = number, read, write

    @overload
    def __get__(self, capture: None, owner: type) -> Self: ...
    @overload
    def __get__(self, capture: "Capture", owner: type) -> T: ...
    def __get__(self, capture: "Capture | None", owner: type) -> Self | T:
        return self if capture is None else self._read(capture.parts()[self._number])

    def __set__(self, capture: "Capture", value: T) -> None:
        parts = capture.parts()
        capture.replace([*parts[: self._number], self._write(value), *parts[self._number + 1 :]])


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")


class Capture:
    """One logged exchange. Bodies are the bytes on the wire; credentials are never among the columns.

    A row of `captures` and its kind as one, for queries too; counted by `func.count(Capture.id)`, since a bare count(*) of what is
    its kind's would count kinds. Many are written by `store.captures.write`, a single one by
    `session.add`. A kind is others' as well: a stored capture is not deleted through the session, nor what is its kind's changed.
    """

    id: str
    created_at: datetime
    task_id: str
    endpoint: str
    status: CaptureStatus
    served_by: Server
    adapter_id: str | None
    fallback: str | None  #: why the student did not answer a routed request
    model: str  #: as the client asked
    stream: bool
    http_status: int | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    first_byte_ms: float | None
    duration_ms: float | None
    retry_count: int
    error: str | None
    meta: dict[str, Any]  #: the request body's `metadata`
    key_id: str | None  #: the virtual key that it came under
    teacher: str | None  #: which of several teachers answered
    cost_usd: float | None  #: by the teacher's prices; none where they are not known
    dictionary_id: int | None
    packed: bytes | None
    _dictionary: Dictionary | None
    plain_request: bytes  #: this and the next three as they are in the row: empty where they are packed
    plain_response: bytes
    plain_prompt_text: str
    plain_answer_text: str
    _unpacked: list[bytes] | None = None

    request = _Part(0, bytes, bytes)
    response = _Part(1, bytes, bytes)  #: JSON or the raw SSE text, content-encoding undone
    prompt_text = _Part(2, _decode, _encode)  #: the last user message, for people and search
    answer_text = _Part(3, _decode, _encode)  #: the answer's content or tool calls, likewise

    def __init__(
        self, *, request: bytes = b"", response: bytes = b"", prompt_text: str = "", answer_text: str = "", **columns: Any
    ) -> None:
        if unknown := columns.keys() - _COLUMNS:
            raise TypeError(f"a capture has no {', '.join(sorted(unknown))}")
        # past the attributes, which would note each change: thousands are made a second, and a new row is written as a whole
        self.__dict__.update(
            {
                **_NOTHING,
                "created_at": columns.get("created_at") or now(),
                "meta": {},
                **columns,
                "plain_request": request,
                "plain_response": response,
                "plain_prompt_text": prompt_text,
                "plain_answer_text": answer_text,
            }
        )

    def parts(self) -> list[bytes]:
        """Request, response, prompt_text and answer_text, the texts in UTF-8. Raises BadFrame if they cannot be read."""
        if self.packed is None:
            return [self.plain_request, self.plain_response, _encode(self.plain_prompt_text), _encode(self.plain_answer_text)]
        if self._unpacked is None:
            self._unpacked = blobs.unpack(self.packed, None if self._dictionary is None else self._dictionary.content())
        return self._unpacked

    def digest(self) -> str:
        """SHA-256 of request and response. Raises BadFrame if they cannot be read."""
        request, response = self.parts()[:2]
        return hashlib.sha256(b"%d:%b%b" % (len(request), request, response)).hexdigest()

    def replace(self, parts: list[bytes]) -> None:
        """Put others in their place, unpacked; in the order of `parts`."""
        self.plain_request, self.plain_response = parts[:2]
        self.plain_prompt_text, self.plain_answer_text = map(_decode, parts[2:])
        self.packed = None


ROWS = cast(sa.Table, CaptureRow.__table__)  # type: ignore[attr-defined]
KINDS = cast(sa.Table, CaptureKind.__table__)  # type: ignore[attr-defined]
DICTIONARIES = cast(sa.Table, Dictionary.__table__)  # type: ignore[attr-defined]
_PARTS = ("request", "response", "prompt_text", "answer_text")
#: A capture's columns: its kind's, and its row's own.
KIND = tuple(column.name for column in KINDS.columns if column.name not in {"id", "digest"})
OWN = tuple(column.name for column in ROWS.columns if column.name not in {*_PARTS, "packed", "kind_id"})
_NOTHING = {**dict.fromkeys((*KIND, *OWN, "packed")), "model": "", "stream": False, "retry_count": 0}
_COLUMNS = {*KIND, *OWN}


def insert_new(session: Session, table: sa.Table) -> Any:
    """An INSERT that leaves out what is there already."""
    dialect = postgresql if session.connection().dialect.name == "postgresql" else sqlite
    return dialect.insert(table).on_conflict_do_nothing()


def _map() -> None:
    mapper: Mapper[Capture] = registry(metadata=SQLModel.metadata).map_imperatively(
        Capture,
        sa.join(ROWS, KINDS, ROWS.c.kind_id == KINDS.c.id),
        primary_key=[ROWS.c.id],
        properties={
            "kind_id": [ROWS.c.kind_id, KINDS.c.id],
            **{f"plain_{name}": ROWS.c[name] for name in _PARTS},
            # one query for all captures of a result, not one a capture
            "_dictionary": relationship(
                Dictionary,
                primaryjoin=KINDS.c.dictionary_id == DICTIONARIES.c.id,
                foreign_keys=[KINDS.c.dictionary_id],
                viewonly=True,
                lazy="selectin",
            ),
        },
    )
    sa.event.listen(mapper, "before_update", _refuse_change)
    sa.event.listen(mapper, "before_delete", _refuse_delete)


def _refuse_change(_mapper: object, _connection: object, capture: Capture) -> None:
    changed = [name for name in KIND if sa.inspect(capture).attrs[name].history.has_changes()]
    if changed:
        raise TypeError(f"{', '.join(changed)} of {capture.id} are its kind's, which other captures share")


def _refuse_delete(_mapper: object, _connection: object, capture: Capture) -> None:
    raise TypeError(f"{capture.id} shares its kind with others: only its row can go, by a statement")


_map()
