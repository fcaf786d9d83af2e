"""The choice itself."""

import pytest

from proxy.request import Wish
from proxy.routing import Choice, choose
from store.routes import Table, Target

LIVE = Table(targets={"t": Target("a@v1", 0.1)}, engines=("http://e",), loaded=frozenset({"a@v1"}))


def choice(table=LIVE, task="t", request=None, wish=Wish.AUTO, trusted=True, draw=0.5) -> Choice:
    return choose(table, task, request or {}, wish, trusted=trusted, draw=draw)


def test_a_live_task_goes_to_its_student():
    assert choice() == choice(request={"n": 1}) == choice(request={"n": None}) == Choice(student="a@v1")


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
        {"trusted": False},
        {"table": Table(LIVE.targets, (), LIVE.loaded)},
        {"table": Table(LIVE.targets, LIVE.engines, frozenset())},
    ],
)
def test_a_student_that_must_not_or_cannot_be_asked_is_not_and_the_reason_is_kept(case):
    assert choice(**case, wish=Wish.STUDENT).student is None
    assert choice(**case, draw=0.0).spare is None
    assert choice(**case).why
