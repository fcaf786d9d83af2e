"""The choice itself."""

import pytest
import sqlalchemy as sa
from sqlmodel import select

from proxy.request import Wish
from proxy.routing import NOBODY, Choice, Routes, choose
from store import moves, tasks
from store.routes import Table, Target
from store.states import EngineStatus
from store.tables import Capture, Engine, TaskTemplate
from tests.proxy.conftest import chat, until

LIVE = Table(targets={"t": Target("a@v1", 0.1)}, engines=("http://e",), loaded=frozenset({"a@v1"}))


BEYOND = {
    "functions": [{"name": "f"}], "function_call": "auto", "web_search_options": {}, "audio": {"voice": "x"},
    "logit_bias": {"5": 1}, "modalities": ["text", "audio"],
}  # fmt: skip


def choice(table=LIVE, task="t", request=None, wish=Wish.AUTO, trusted=True, draw=0.5) -> Choice:
    return choose(table, task, request or {}, wish, trusted=lambda: trusted, draw=draw)


def test_a_live_task_goes_to_its_student():
    nothing = {**dict.fromkeys(BEYOND), "logit_bias": {}, "modalities": ["text"]}
    assert choice() == choice(request=nothing) == choice(request={"n": 1}) == choice(request={"n": None}) == Choice(student="a@v1")


def test_what_is_held_back_may_go_to_the_student_only_if_the_teacher_cannot_answer():
    assert choice(draw=0.0999) == Choice(spare="a@v1")
    assert choice(draw=0.1) == Choice(student="a@v1")
    assert choice(draw=0.0, wish=Wish.STUDENT) == Choice(student="a@v1")


def test_the_clients_wish_for_the_teacher_is_final():
    assert choice(wish=Wish.TEACHER) == Choice()


def test_a_task_without_a_student_needs_no_reason_unless_one_was_wished_for():
    assert choice(task="other") == Choice()
    assert choice(task="other", wish=Wish.STUDENT) == Choice(why="the task has no student")


@pytest.mark.parametrize(
    "case",
    [
        {"request": {"n": 2}},
        {"request": {"n": "1"}},
        *({"request": {field: value}} for field, value in BEYOND.items()),
        {"trusted": False},
        {"table": Table(LIVE.targets, (), LIVE.loaded)},
        {"table": Table(LIVE.targets, LIVE.engines, frozenset())},
    ],
)
def test_a_student_that_must_not_or_cannot_be_asked_is_not_and_the_reason_is_kept(case):
    assert choice(**case, wish=Wish.STUDENT).student is None
    assert choice(**case, draw=0.0).spare is None
    assert choice(**case).why


def test_a_table_that_cannot_be_read_is_told_once_and_ends_nothing(db, caplog):
    table = Routes(db, 0.01)
    assert (table.table, table.age) == (NOBODY, None)
    table.start()
    until(lambda: table.age is not None)
    with db.begin() as session:
        session.add(Engine(id="e-1", url="http://e", status=EngineStatus.READY, loaded=["a"]))
    until(lambda: table.table.engines)
    _load(db, "null")
    until(lambda: table.age >= 0.3)
    assert table.table.loaded == {"a"}
    _load(db, '["a", "b"]')
    until(lambda: table.table.loaded == {"a", "b"})
    assert table.age < 0.3
    table.stop()
    assert [record.message for record in caplog.records] == ["the routes cannot be read, the last ones stay: TypeError"]


def _load(db, json):
    with db.begin() as session:
        session.execute(sa.text("UPDATE engines SET loaded = :json"), {"json": json})


def test_a_merge_and_a_template_are_known_to_a_running_proxy_within_a_moment(start, db, captures):
    proxy = start()

    def asked(name):
        return {"model": "big-1", "messages": [{"role": "system", "content": f"Sort {name}'s ticket."}, chat()["messages"][1]]}

    first, second = (proxy.chat(asked(name)).headers["x-stillroom-task"] for name in ("Ann", "Bob"))
    assert first != second
    captures(2)
    with db.begin() as session:
        kept, other = (tasks.find(session, name) for name in (first, second))
        moves.merge(session, kept, [other], by="ann")
        fixed = {"segments": ["Sort ", "'s ticket."], "gaps": [0, 50, 0]}
        session.add(TaskTemplate(task_id=kept.id, scope=kept.shape, changed_by="discovery", **fixed))
    until(lambda: proxy.chat(asked("Bob")).headers["x-stillroom-task"] == first)
    assert proxy.chat(asked("Eve")).headers["x-stillroom-task"] == first
    assert proxy.chat(asked("Eve"), x_stillroom_task=second).headers["x-stillroom-task"] == second  # not what it was ever told
    assert proxy.chat(asked("Bob"), x_stillroom_task=second).headers["x-stillroom-task"] == first

    def stored():
        with db.read() as session:
            return [c.task_id for c in session.exec(select(Capture).order_by(Capture.id)) if "Eve" in str(c.request)]

    assert until(stored)[0] == kept.id
