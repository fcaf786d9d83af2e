"""Tasks: where each stands, and what their owner decides."""

import sys
from typing import Any

import pytest
from sqlmodel import select

from admin import adapters, tasks
from admin.problems import Conflict, Invalid, NotFound
from store import policy
from store import tasks as identity
from store.session import Database
from store.states import AdapterStatus, Outcome, Split, TaskStatus
from store.tables import AuditEvent, Route, Task
from tests.admin import rows


@pytest.fixture
def task(db: Database) -> Task:
    with db.begin() as session:
        return rows.numbers(session, 0, 8)


def test_a_task_shows_its_counts_and_what_it_waits_for(db: Database, task: Task) -> None:
    with db.begin() as session:
        rows.pair(session, rows.capture(session, "again"), None, reason="exact duplicate of an earlier pair")
        rows.capture(session, "not yet a pair")
    with db.read() as session:
        [line] = tasks.listing(session).data
    assert line.captures == 10
    assert (line.pairs.train, line.pairs.holdout, line.pairs.excluded) == (6, 2, 1)
    assert (line.incumbent, line.verdict) == (None, None)
    assert line.next == "292 more pairs until the first training"


def test_a_task_shows_its_incumbent_and_the_last_verdict(db: Database, task: Task) -> None:
    with db.begin() as session:
        first = rows.trained(session, task, version=1)
        rows.trained(session, task, version=2, outcome=Outcome.FAILED)
        rows.live(session, first)
    with db.read() as session:
        line = tasks.one(session, task.name)
    assert (line.incumbent, line.holdback) == (first.id, 0.02)
    assert line.verdict is not None
    assert line.verdict.outcome == Outcome.FAILED


def test_the_busiest_tasks_come_first(db: Database, task: Task) -> None:
    with db.begin() as session:
        for n in range(3):
            rows.capture(session, "fleeting", request={"model": f"other {n}"})
    with db.read() as session:
        found, more = tasks.busiest(session, 2)
    assert found[0].id == task.id
    assert (len(found), more) == (2, True)


def test_an_unknown_task_is_told_with_those_there_are(db: Database, task: Task) -> None:
    with db.read() as session, pytest.raises(NotFound, match=f"There are: {task.name}"):
        tasks.find(session, "nothing")


def test_without_tasks_it_says_how_to_get_one(db: Database) -> None:
    with db.read() as session, pytest.raises(NotFound, match="stillroom import"):
        tasks.find(session, "nothing")


def test_a_renamed_task_keeps_its_id_and_is_found_by_either(db: Database, task: Task) -> None:
    with db.begin() as session:
        tasks.rename(session, task.name, "odd or even", by="me")
    with db.read() as session:
        assert tasks.find(session, "odd or even").id == tasks.find(session, task.id).id == task.id


def test_a_name_that_is_taken_or_none_is_refused(db: Database, task: Task) -> None:
    with db.begin() as session:
        identity.ensure(session, identity.identify({}, "taken"))
        with pytest.raises(Conflict, match="another task called 'taken'"):
            tasks.rename(session, task.id, "taken", by="me")
        with pytest.raises(Invalid, match="begins with a letter"):
            tasks.rename(session, task.id, "-", by="me")


def test_a_policy_keeps_only_what_differs_from_the_defaults(db: Database, task: Task) -> None:
    with db.begin() as session:
        tasks.decide(session, task.id, {"holdout": "0.3", "first_pairs": 300, "auto_promote": False}, by="me")
    with db.read() as session:
        found = tasks.one(session, task.id)
    assert found.decided == {"holdout": 0.3, "auto_promote": False}
    assert (found.policy.holdout, found.policy.auto_promote, found.policy.first_pairs) == (0.3, False, 300)


def test_null_takes_a_key_back_to_its_default(db: Database, task: Task) -> None:
    with db.begin() as session:
        tasks.decide(session, task.id, {"holdout": 0.3, "growth": 0.5}, by="me")
        tasks.decide(session, task.id, {"holdout": None}, by="me")
    with db.read() as session:
        assert session.get_one(Task, task.id).policy == {"growth": 0.5}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"holdoutt": 0.3}, "'holdoutt' is no key of a policy.*The keys are first_pairs, growth"),
        ({"holdoutt": None}, "'holdoutt' is no key of a policy"),
        ({"holdout": 2}, "holdout: Input should be less than 1"),
        ({"holdout": "many"}, "holdout: .*number"),
        ({"growth": "inf"}, "growth: .*finite number"),
        ({"growth": 1e9}, "growth: .*less than or equal to 100"),
        ({"min_hours": 1e9}, "min_hours: .*less than or equal to 8760"),
        ({"first_pairs": 0, "growth": -1}, "first_pairs: .*; growth: "),
        ({"cron": "every day"}, "no crontab line.*Five fields"),
        ({"cron": "0 25 * * *"}, "no crontab line"),
    ],
)
def test_a_bad_policy_is_refused_with_the_reason_and_changes_nothing(
    db: Database, task: Task, changes: dict[str, Any], reason: str
) -> None:
    with db.begin() as session:
        with pytest.raises(Invalid, match=reason):
            tasks.decide(session, task.id, {"growth": 0.5, **changes}, by="me")
        assert policy.of(session.get_one(Task, task.id)) == policy.Policy()


def test_a_policy_that_cannot_be_used_is_shown_as_such_and_mended(db: Database, task: Task) -> None:
    with db.begin() as session:
        session.get_one(Task, task.id).policy = {"growth": None, "min_hours": 1e9, "unknown": 1}
    with db.read() as session:
        [line], found = tasks.listing(session).data, tasks.one(session, task.id)
    assert line.next.startswith("its policy cannot be used: growth: ")
    assert (found.policy, found.decided["min_hours"]) == (None, 1e9)
    with db.begin() as session:
        with pytest.raises(Conflict, match="policy cannot be used"):
            adapters.train(session, task.id, by="me")
        tasks.decide(session, task.id, {"min_hours": None, "unknown": None}, by="me")
        assert session.get_one(Task, task.id).policy == {}


def test_a_timetable_is_taken(db: Database, task: Task) -> None:
    with db.begin() as session:
        tasks.decide(session, task.id, {"cron": "0 3 * * *"}, by="me")
        assert policy.of(session.get_one(Task, task.id)).cron == "0 3 * * *"


def test_a_paused_task_says_so(db: Database, task: Task) -> None:
    with db.begin() as session:
        tasks.set_status(session, task.id, TaskStatus.PAUSED, by="me")
    with db.read() as session:
        assert tasks.one(session, task.id).next == "the task is paused"


def test_an_ignored_task_goes_back_to_the_teacher_at_once(db: Database, task: Task) -> None:
    with db.begin() as session:
        rows.live(session, rows.trained(session, task))
        tasks.set_status(session, task.id, TaskStatus.IGNORED, by="me")
    with db.read() as session:
        assert session.get_one(Route, task.id).adapter_id is None
        assert tasks.one(session, task.id).incumbent is None


def test_what_an_owner_decides_is_in_the_audit_log(db: Database, task: Task) -> None:
    with db.begin() as session:
        tasks.rename(session, task.id, "numbers", by="ann")
        tasks.decide(session, task.id, {"growth": 0.5}, by="ann")
        tasks.set_status(session, task.id, TaskStatus.PAUSED, by="ann")
        tasks.set_status(session, task.id, TaskStatus.PAUSED, by="ann")
    with db.read() as session:
        events = session.exec(select(AuditEvent).order_by("id")).all()
    assert [(event.actor, event.action) for event in events] == [
        ("ann", "task renamed"), ("ann", "policy changed"), ("ann", "task status changed"),
    ]  # fmt: skip
    assert events[1].detail == {"from": {}, "to": {"growth": 0.5}}


def test_pairs_of_one_split_only_are_counted_right(db: Database) -> None:
    with db.begin() as session:
        capture = rows.capture(session, "1?")
        rows.pair(session, capture, Split.HOLDOUT)
    with db.read() as session:
        assert tasks.one(session, capture.task_id).pairs == tasks.PairCounts(holdout=1)


def test_without_distills_packages_a_timetable_is_read_elsewhere(db: Database, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    with db.begin() as session:
        rows.trained(session, task)
        session.get_one(Task, task.id).policy = {"cron": "0 3 * * *"}
    monkeypatch.setitem(sys.modules, "apscheduler.triggers.cron", None)
    with db.read() as session:
        assert tasks.one(session, task.id).next == "by its timetable, which is read where distill is installed"
    with db.begin() as session, pytest.raises(Invalid, match="in the checkout: make setup"):
        tasks.decide(session, task.id, {"cron": "0 4 * * *"}, by="me")


def test_tasks_are_merged_and_found_by_the_old_name(db: Database, task: Task) -> None:
    with db.begin() as session:
        other = rows.capture(session, "Guten Tag", request={"model": "small"}).task_id
        tasks.rename(session, other, "small numbers", by="me")
        before = tasks.one(session, task.id).captures
        session.flush()
        tasks.merge(session, task.id, ["small numbers"], by="ann", why="the same")
    with db.read() as session:
        found = tasks.one(session, "small numbers")
        assert (found.id, found.captures, found.merged) == (task.id, before + 1, 1)
        [event] = session.exec(select(AuditEvent).where(AuditEvent.action == "tasks merged"))
    assert (event.actor, event.detail["why"]) == ("ann", "the same")


def test_what_cannot_be_merged_is_told(db: Database, task: Task) -> None:
    with db.begin() as session:
        adapter = rows.trained(session, task, outcome=None)
        assert adapter.status == AdapterStatus.CANDIDATE
        other = rows.capture(session, "?", request={"model": "small"}).task_id
        with pytest.raises(Invalid, match="itself"):
            tasks.merge(session, task.id, [task.id], by="me")
        with pytest.raises(Invalid, match="at least two"):
            tasks.merge(session, task.id, [], by="me")
        with pytest.raises(NotFound):
            tasks.merge(session, task.id, ["nobody"], by="me")
        with pytest.raises(Conflict, match="being trained or judged"):
            tasks.merge(session, other, [task.id], by="me")


def test_a_task_is_split_by_a_text(db: Database, task: Task) -> None:
    with db.begin() as session:
        rows.capture(session, "12?")
        part = tasks.split(session, task.id, "12?", "twelve", by="ann")
        assert identity.identify({}, "twelve").id == part.id
    with db.read() as session:
        assert tasks.one(session, task.id).parts == ["twelve"]
        assert session.get_one(Task, part.id).steered_at is not None
        [event] = session.exec(select(AuditEvent).where(AuditEvent.action == "task divided"))
    assert (event.actor, event.subject, event.detail["containing"]) == ("ann", task.id, "12?")


@pytest.mark.parametrize(
    ("containing", "name", "reason"),
    [
        ("1", "ones", "at least 3 characters"),
        ("12?", "-x", "task name"),
        ("12?", "odd or even", "already"),
        ("nobody says this", "none", "None of the last"),
        ("Say whether", "all", "Each of the last"),
    ],
)
def test_what_divides_nothing_is_refused(db: Database, task: Task, containing: str, name: str, reason: str) -> None:
    with db.begin() as session:
        tasks.rename(session, task.id, "odd or even", by="me")
        session.flush()
        with pytest.raises((Invalid, Conflict), match=reason):
            tasks.split(session, task.id, containing, name, by="me")


def test_whatever_a_person_decides_marks_the_task_as_theirs(db: Database, task: Task) -> None:
    for decide in (
        lambda session: tasks.rename(session, task.id, "mine", by="me"),
        lambda session: tasks.decide(session, task.id, {"growth": 0.5}, by="me"),
        lambda session: tasks.set_status(session, task.id, TaskStatus.PAUSED, by="me"),
    ):
        with db.begin() as session:
            session.get_one(Task, task.id).steered_at = None
        with db.begin() as session:
            decide(session)
        with db.read() as session:
            assert session.get_one(Task, task.id).steered_at is not None
