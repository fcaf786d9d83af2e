"""Rows only: what is due, and what promoting, taking back and refusing leave behind."""

from collections.abc import Callable

import pytest
from sqlmodel import select

from serving import rollout
from serving.rollout import NotReady, Step, Verb
from store import routes
from store.routes import Target
from store.session import Database
from store.states import AdapterStatus, EngineStatus, Outcome, RolloutStage, TaskStatus
from store.tables import Adapter, AuditEvent, Engine, Rollout, Route, Task
from tests.serving.conftest import engine_row, judge

Make = Callable[..., str]


def advance(db: Database) -> list[Verb]:
    with db.begin() as session:
        return [step.verb for step in rollout.advance(session)]


def stages(db: Database) -> dict[str, RolloutStage]:
    with db.read() as session:
        return dict(session.exec(select(Rollout.adapter_id, Rollout.stage)).all())


def detail(db: Database, adapter_id: str) -> str:
    with db.read() as session:
        return session.exec(select(Rollout.detail).where(Rollout.adapter_id == adapter_id)).one()


def targets(db: Database) -> dict[str, Target]:
    with db.read() as session:
        return routes.read(session).targets


def actions(db: Database, subject: str) -> list[str]:
    with db.read() as session:
        return list(session.exec(select(AuditEvent.action).where(AuditEvent.subject == subject).order_by("id")).all())


def live(db: Database, make_adapter: Make, version: int = 1) -> str:
    """An adapter that came in the whole way."""
    name = make_adapter(version=version)
    with db.read() as session:
        row = session.get(Engine, "engine-test")
    engine_row(db, *(row.loaded if row else []), name)
    advance(db)
    judge(db, name, Outcome.PASSED)
    advance(db)
    return name


def change_task(db: Database, task: str = "task_1", **changes: object) -> None:
    with db.begin() as session:
        row = session.get_one(Task, task)
        for key, value in changes.items():
            setattr(row, key, value)


def test_a_candidate_is_staged_once_every_ready_engine_has_it(db: Database, make_adapter: Make) -> None:
    name = make_adapter()
    assert advance(db) == []
    engine_row(db, name, name="engine-a")
    engine_row(db, name="engine-b")
    assert advance(db) == []
    engine_row(db, name, name="engine-b")
    assert advance(db) == [Verb.STAGE]
    assert stages(db) == {name: RolloutStage.STAGED}
    assert advance(db) == []
    assert targets(db) == {}


def test_an_engine_that_is_down_is_not_waited_for(db: Database, make_adapter: Make) -> None:
    name = make_adapter()
    engine_row(db, name, name="engine-a")
    engine_row(db, name="engine-b", status=EngineStatus.DOWN)
    assert advance(db) == [Verb.STAGE]


def test_a_staged_adapter_waits_for_its_verdict_and_is_promoted_when_it_passed(db: Database, make_adapter: Make) -> None:
    name = make_adapter()
    engine_row(db, name)
    assert advance(db) == [Verb.STAGE]
    assert advance(db) == []
    judge(db, name, Outcome.PASSED)
    assert advance(db) == [Verb.PROMOTE]
    assert stages(db) == {name: RolloutStage.LIVE}
    assert targets(db) == {"task_1": Target(name, 0.02)}
    assert actions(db, name) == ["stage", "promote"]
    assert advance(db) == []


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.INSUFFICIENT])
def test_an_adapter_that_did_not_pass_is_retired_and_the_teacher_goes_on(
    db: Database, make_adapter: Make, outcome: Outcome
) -> None:
    name = make_adapter()
    engine_row(db, name)
    advance(db)
    judge(db, name, outcome)
    assert advance(db) == [Verb.RETIRE]
    assert stages(db) == {name: RolloutStage.RETIRED}
    assert "z = 2.1" in detail(db, name)
    assert targets(db) == {}


def test_a_newer_adapter_retires_the_live_one(db: Database, make_adapter: Make) -> None:
    first = live(db, make_adapter)
    second = live(db, make_adapter, version=2)
    assert stages(db) == {first: RolloutStage.RETIRED, second: RolloutStage.LIVE}
    assert targets(db)["task_1"].adapter_id == second
    assert detail(db, first) == f"replaced by {second}"


def test_an_older_adapter_that_passes_late_does_not_replace_a_newer_one(db: Database, make_adapter: Make) -> None:
    late = make_adapter(version=1)
    engine_row(db, late)
    advance(db)
    second = live(db, make_adapter, version=2)
    judge(db, late, Outcome.PASSED)
    assert advance(db) == [Verb.RETIRE]
    assert targets(db)["task_1"].adapter_id == second


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"policy": {"auto_promote": False}}, "the task's policy says so"),
        ({"status": TaskStatus.PAUSED}, "the task is paused"),
        ({"policy": {"auto_promote": "perhaps"}}, "cannot be read"),
    ],
)
def test_what_must_not_go_live_by_itself_waits_for_a_person_and_says_so_once(
    db: Database, make_adapter: Make, change: dict[str, object], reason: str
) -> None:
    name = make_adapter(verdict=Outcome.PASSED)
    change_task(db, **change)
    engine_row(db, name)
    assert advance(db) == [Verb.STAGE]
    assert advance(db) == [Verb.WAIT]
    assert reason in detail(db, name)
    assert advance(db) == []
    assert targets(db) == {}


def test_a_person_promotes_what_waited(db: Database, make_adapter: Make) -> None:
    name = make_adapter(verdict=Outcome.PASSED)
    change_task(db, policy={"auto_promote": False, "holdback": 0.25})
    engine_row(db, name)
    advance(db)
    with db.begin() as session:
        route = rollout.promote(session, name, by="ada", why="looks good")
    assert (route.adapter_id, route.holdback, route.updated_by) == (name, 0.25, "ada")
    assert stages(db) == {name: RolloutStage.LIVE}


def test_a_passed_adapter_that_is_not_loaded_is_not_promoted(db: Database, make_adapter: Make) -> None:
    name = make_adapter()
    engine_row(db, name)
    advance(db)
    judge(db, name, Outcome.PASSED)
    engine_row(db)
    assert advance(db) == []
    with db.begin() as session, pytest.raises(NotReady, match="has not loaded"):
        rollout.promote(session, name, by="ada", why="now")
    engine_row(db, name, status=EngineStatus.DOWN)
    with db.begin() as session, pytest.raises(NotReady, match="no vLLM is ready"):
        rollout.promote(session, name, by="ada", why="now")
    assert targets(db) == {}
    engine_row(db, name)
    assert advance(db) == [Verb.PROMOTE]


def test_promoting_twice_changes_nothing_but_a_new_holdback_does(db: Database, make_adapter: Make) -> None:
    name = live(db, make_adapter)
    with db.begin() as session:
        assert rollout.promote(session, name, by="ada", why="again").version == 1
    with db.begin() as session:
        assert rollout.promote(session, name, by="ada", why="less", holdback=0.5).version == 2
    assert targets(db) == {"task_1": Target(name, 0.5)}
    assert actions(db, name).count("promote") == 1


@pytest.mark.parametrize("change", [{"status": TaskStatus.IGNORED}, {"policy": {"holdback": "much"}}])
def test_a_task_that_is_ignored_or_has_no_readable_policy_is_not_promoted(
    db: Database, make_adapter: Make, change: dict[str, object]
) -> None:
    name = make_adapter()
    engine_row(db, name)
    change_task(db, **change)
    with db.begin() as session, pytest.raises(NotReady):
        rollout.promote(session, name, by="ada", why="now")
    with db.begin() as session, pytest.raises(NotReady, match="there is no adapter"):
        rollout.promote(session, "task_1@v9", by="ada", why="now")


def test_a_rollback_needs_neither_engine_nor_worker(db: Database, make_adapter: Make) -> None:
    name = live(db, make_adapter)
    with db.begin() as session:
        session.delete(session.get_one(Engine, "engine-test"))
    with db.begin() as session:
        route = rollout.rollback(session, "task_1", by="ada", why="it erred")
    assert (route.adapter_id, route.version) == (None, 2)
    assert targets(db) == {}
    assert stages(db) == {name: RolloutStage.ROLLED_BACK}
    assert detail(db, name) == "rolled back by ada: it erred"


def test_a_rolled_back_adapter_does_not_come_back_by_itself(db: Database, make_adapter: Make) -> None:
    live(db, make_adapter)
    with db.begin() as session:
        rollout.rollback(session, "task_1", by="ada", why="it erred")
    assert advance(db) == []


def test_a_task_that_has_no_route_can_be_rolled_back(db: Database, make_adapter: Make) -> None:
    make_adapter()
    with db.begin() as session:
        assert rollout.rollback(session, "task_1", by="ada", why="to be sure").adapter_id is None


def test_promoting_a_retired_adapter_has_it_loaded_first(db: Database, make_adapter: Make) -> None:
    first = live(db, make_adapter)
    second = live(db, make_adapter, version=2)
    engine_row(db, second)  # the first was unloaded
    with db.begin() as session:
        assert rollout.request_promotion(session, first, by="ada", why="it was better", holdback=0.3) is None
    assert stages(db) == {first: RolloutStage.STAGED, second: RolloutStage.LIVE}
    assert advance(db) == []
    engine_row(db, first, second)
    assert advance(db) == [Verb.PROMOTE]
    assert stages(db) == {first: RolloutStage.LIVE, second: RolloutStage.RETIRED}
    assert targets(db) == {"task_1": Target(first, 0.3)}
    with db.read() as session:
        assert session.get_one(Route, "task_1").updated_by == "ada"
    assert detail(db, first) == "promoted by ada: it was better"


def test_a_person_may_promote_what_did_not_pass(db: Database, make_adapter: Make) -> None:
    name = make_adapter(verdict=Outcome.FAILED)
    engine_row(db, name)
    advance(db)
    assert advance(db) == [Verb.RETIRE]
    with db.begin() as session:
        assert rollout.request_promotion(session, name, by="ada", why="good enough") is not None
    assert stages(db) == {name: RolloutStage.LIVE}
    assert advance(db) == []


def test_a_rollback_takes_back_what_was_only_asked_for(db: Database, make_adapter: Make) -> None:
    name = live(db, make_adapter)
    engine_row(db)
    with db.begin() as session:
        rollout.rollback(session, "task_1", by="ada", why="it erred")
    with db.begin() as session:
        rollout.request_promotion(session, name, by="ada", why="once more")
    with db.begin() as session:
        rollout.rollback(session, "task_1", by="ada", why="no, better not")
    engine_row(db, name)
    assert advance(db) == []
    assert stages(db) == {name: RolloutStage.ROLLED_BACK}


def test_what_was_asked_for_is_dropped_when_the_task_is_ignored(db: Database, make_adapter: Make) -> None:
    name = make_adapter()
    engine_row(db)
    with db.begin() as session:
        rollout.request_promotion(session, name, by="ada", why="now")
    change_task(db, status=TaskStatus.IGNORED)
    engine_row(db, name)
    assert advance(db) == [Verb.RETIRE]
    assert targets(db) == {}


def test_a_refused_adapter_is_told_and_looked_at_again_when_a_person_asks(db: Database, make_adapter: Make) -> None:
    name = make_adapter()
    for _ in range(2):
        with db.begin() as session:
            rollout.refuse(session, name, "its rank is 99")
    assert stages(db) == {name: RolloutStage.REFUSED}
    assert actions(db, name) == ["refuse"]
    engine_row(db, name)
    assert advance(db) == []
    engine_row(db)
    with db.begin() as session:
        assert rollout.request_promotion(session, name, by="ada", why="the rank is set higher") is None
    assert stages(db) == {name: RolloutStage.STAGED}
    engine_row(db, name)
    assert advance(db) == [Verb.PROMOTE]
    assert stages(db) == {name: RolloutStage.LIVE}


def test_an_adapter_whose_evaluation_was_given_up_is_retired(db: Database, make_adapter: Make) -> None:
    name = make_adapter()
    engine_row(db, name)
    assert advance(db) == [Verb.STAGE]
    with db.begin() as session:
        session.get_one(Adapter, name).status = AdapterStatus.REFUSED
    assert advance(db) == [Verb.RETIRE]
    assert detail(db, name) == "its evaluation could not be finished"


def test_a_live_adapter_whose_file_cannot_be_read_stays_live(db: Database, make_adapter: Make) -> None:
    name = live(db, make_adapter)
    with db.begin() as session:
        rollout.refuse(session, name, "the disk is away")
    assert stages(db) == {name: RolloutStage.LIVE}
    assert targets(db)["task_1"].adapter_id == name


def test_tasks_do_not_disturb_one_another(db: Database, make_adapter: Make) -> None:
    one = make_adapter(task="task_1", verdict=Outcome.PASSED)
    two = make_adapter(task="task_2", verdict=Outcome.PASSED)
    engine_row(db, one, two)
    assert advance(db) == [Verb.STAGE, Verb.STAGE]
    assert advance(db) == [Verb.PROMOTE, Verb.PROMOTE]
    with db.begin() as session:
        rollout.rollback(session, "task_1", by="ada", why="it erred")
    assert targets(db) == {"task_2": Target(two, 0.02)}


def test_looking_at_what_is_due_changes_nothing(db: Database, make_adapter: Make) -> None:
    name = make_adapter()
    engine_row(db, name)
    with db.read() as session:
        assert rollout.due(session) == [Step(Verb.STAGE, name, "checked and loaded")]
    assert stages(db) == {}
