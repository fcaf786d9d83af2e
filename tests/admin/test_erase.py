"""Forgetting: what a user said is nowhere below the home folder, nor in the database, and nothing of anybody else's is touched."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlmodel import SQLModel, col, func, select
from typer.testing import Result

from admin import erase as erasing
from admin import exporting, reviews
from admin.erase import Report, Wanted
from admin.problems import Invalid, NotFound
from distill import datasets, discovery
from distill.settings import DistillSettings
from proxy.spool import Folder, Spool, nobody
from serving import rollout
from store import captures as stored
from store import ids, keys, moves, routes, tasks
from store.capture import ROWS
from store.packing import Packer
from store.policy import Policy
from store.session import Database
from store.states import AdapterStatus, DatasetStatus, RunPurpose, RunStatus
from store.tables import (
    Adapter,
    AuditEvent,
    Capture,
    Dataset,
    Dictionary,
    Route,
    Run,
    Task,
    TaskTemplate,
)
from tests import chain

RULES = "You sort letters into departments. Answer with one word, the department, in lower case. Never explain your answer. " * 4
CANARY, USER = "xyzzy-canary-7731 plugh", "ada.canary@example.com"


@pytest.fixture
def settings(tmp_path: Path) -> DistillSettings:
    return DistillSettings(home=tmp_path)


def captures() -> list[Capture]:
    """Those of eleven people, one of whom is to be forgotten; every tenth is theirs."""
    people = [f"person {n}" for n in range(10)]
    found = []
    for n in range(120):
        if n % 10 == 4:
            found.append(chain.exchange(n, RULES, USER, question=f"{chain.said(n)} {CANARY}", answer=f"{CANARY} {n % 3}"))
        else:
            found.append(chain.exchange(n, RULES, people[n % 10]))
    return found


def a_whole_wheel(db: Database, settings: DistillSettings) -> tuple[str, Adapter, Dataset]:
    """Captures, pairs, reviews, an export, a dataset, an adapter, its evaluation: all with the canary in it."""
    task_id = chain.write(db, captures())
    chain.pair(db, task_id)
    with db.begin() as session:
        theirs = [each for each in session.exec(select(Capture)) if each.meta.get("user") == USER]
        reviews.correct(session, theirs[0].id, f"corrected {CANARY}", by="tests", note=f"note {CANARY}")
        exported = settings.home_path / "mine.jsonl"
        exporting.note(session, task_id, exported, by="tests")
    exported.write_bytes(b"".join(exporting.lines(db, task_id)))
    dataset = chain.freeze(db, task_id, settings)
    adapter = chain.train(db, dataset, settings)
    chain.evaluate(db, adapter, dataset, settings)
    assert said_anywhere(db, settings.home_path) >= {"pairs", "reviews", "mine.jsonl", "train.jsonl", "captures"}
    return task_id, adapter, dataset


def said_anywhere(db: Database, home: Path, *words: str) -> set[str]:
    """Names of the tables, and of the files, in which one of the words is; by default the canary and its user."""
    wanted = [word.encode() for word in words or (CANARY, USER)]
    found = set()
    for file in chain.files(home):
        if any(word in file.read_bytes() for word in wanted):
            found.add(file.name)
    with db.read() as session:
        for table in SQLModel.metadata.sorted_tables:
            for row in session.execute(table.select()):
                if any(word in repr(tuple(row)).encode() for word in wanted):
                    found.add(table.name)
        for capture in session.exec(select(Capture)):
            if any(word in part for part in capture.parts() for word in wanted):
                found.add("captures")
        for dictionary in session.exec(select(Dictionary)):
            if dictionary.packed and any(word in dictionary.content() for word in wanted):
                found.add("dictionaries")
    return found


def frames(db: Database) -> list[bytes]:
    """The canary's captures as they are packed."""
    with db.read() as session:
        return [each.packed for each in session.exec(select(Capture)) if each.meta.get("user") == USER and each.packed]


def quiet(_: str) -> None:
    """Nobody listens."""


def forget(db: Database, settings: DistillSettings, **wanted: Any) -> Report:
    options = {name: wanted.pop(name) for name in ("take_back", "why") if name in wanted}
    return erasing.erase(db, settings, Wanted(**wanted or {"user": USER}), by="tests", say=quiet, **options)


def test_a_user_is_nowhere_afterwards_and_everybody_else_is_as_before(sqlite: Database, settings: DistillSettings) -> None:
    task_id, adapter, dataset = a_whole_wheel(sqlite, settings)
    packed = frames(sqlite)
    assert packed
    report = forget(sqlite, settings)
    assert said_anywhere(sqlite, settings.home_path) == set()
    for file in chain.files(settings.home_path):  # nor in pages that are free, nor in the journal
        assert [frame for frame in packed if frame in file.read_bytes()] == [], file
    assert (report.captures, report.pairs, report.datasets, report.adapters) == (12, 12, [dataset.id], [adapter.id])
    assert report.retrain == report.tasks
    assert report.notes == []
    with sqlite.read() as session:
        assert session.exec(select(func.count(col(Capture.id)))).one() == 108
        assert len(chain.ready(sqlite, task_id)) == 108
        assert session.get_one(Dataset, dataset.id).status == DatasetStatus.ERASED
        assert session.get_one(Adapter, adapter.id).stale_since is not None
        assert session.get_one(Task, task_id).train_asked_at is not None
    lines = (settings.home_path / "mine.jsonl").read_bytes().splitlines()
    assert len(lines) == len([pair for pair in chain.ready(sqlite, task_id) if pair.status == "ready"])
    assert not (settings.home_path / dataset.path).exists()
    card = (settings.home_path / adapter.path / "README.md").read_text()
    assert "Stale since" in card
    again = chain.freeze(sqlite, task_id, settings)  # what is left is learned from as ever
    assert (again.id != dataset.id, again.status) == (True, DatasetStatus.FROZEN)


def test_on_postgresql_too(db: Database, settings: DistillSettings) -> None:
    task_id, adapter, _ = a_whole_wheel(db, settings)
    report = forget(db, settings)
    assert said_anywhere(db, settings.home_path) == set()
    assert len(chain.ready(db, task_id)) == 108
    assert report.adapters == [adapter.id]
    assert bool(report.notes) is not db.sqlite  # what is left in PostgreSQL's pages is said


@pytest.mark.parametrize("killed_at", range(1, 5))
def test_killed_at_any_moment_it_is_finished_by_doing_it_again(sqlite: Database, settings: DistillSettings, killed_at: int) -> None:
    a_whole_wheel(sqlite, settings)
    steps = iter(range(1, 100))

    def die(_: str) -> None:
        if next(steps) == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        erasing.erase(sqlite, settings, Wanted(user=USER), by="tests", say=die)
    report = forget(sqlite, settings)
    assert said_anywhere(sqlite, settings.home_path) == set()
    assert (len(report.adapters), len(report.retrain)) == (1, 1)


def test_killed_when_rows_are_gone_and_files_are_not_it_is_finished_by_doing_it_again(
    sqlite: Database, settings: DistillSettings
) -> None:
    """Rows are gone and files are not: the second time finds the files by the dataset's state."""
    _, _, dataset = a_whole_wheel(sqlite, settings)
    script = (
        "import os\nfrom admin import erase\nfrom distill.settings import DistillSettings\nfrom store.session import Database\n"
        f"settings = DistillSettings(home={str(settings.home_path)!r})\n"
        "erase.leftovers.sweep = lambda *_: os._exit(9)\n"  # a kill -9 at this very moment
        f"erase.erase(Database(settings.url), settings, erase.Wanted(user={USER!r}), by='x')\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(__file__).parents[2])
    assert killed.returncode == 9
    assert (settings.home_path / dataset.path / "train.jsonl").exists()
    assert forget(sqlite, settings).datasets == [dataset.id]
    assert said_anywhere(sqlite, settings.home_path) == set()


@pytest.mark.parametrize(
    ("where", "at"), [(erasing.traces, "remove"), (stored, "repack"), (erasing, "_delete"), (erasing, "_take_stock")]
)
def test_a_task_of_their_words_alone_is_forgotten_whole_by_the_second_of_two_of_which_the_first_was_killed(
    sqlite: Database, settings: DistillSettings, monkeypatch: pytest.MonkeyPatch, where: ModuleType, at: str
) -> None:
    own = f"You are the helper of {CANARY} and of nobody else at all. " * 9
    chain.write(sqlite, [chain.exchange(n, own, USER) for n in range(60)])

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(where, at, die)
        with pytest.raises(KeyboardInterrupt):
            forget(sqlite, settings)
    assert said_anywhere(sqlite, settings.home_path)
    forget(sqlite, settings)
    assert said_anywhere(sqlite, settings.home_path) == set()


def test_what_is_no_adapters_and_what_a_merged_task_had_go_too(sqlite: Database, settings: DistillSettings) -> None:
    """A trial's folder; the folder of a task's only adapter after the task was merged into another; an export cut off."""
    task_id, adapter, dataset = a_whole_wheel(sqlite, settings)
    with sqlite.begin() as session:
        session.add(trial := Run(
            task_id=task_id, dataset_id=dataset.id, base_model="b", recipe={}, recipe_hash="t", status=RunStatus.SUCCEEDED,
            purpose=RunPurpose.TRIAL,
        ))  # fmt: skip
    left = settings.run_folder(trial.id) / "transform.json"
    left.parent.mkdir()
    left.write_text(CANARY)
    torn = settings.home_path / "mine.jsonl.partial"
    torn.write_text(CANARY)
    forget(sqlite, settings)
    assert (left.exists(), torn.exists(), (settings.home_path / adapter.path).exists()) == (False, False, True)
    for user in ("somebody", *(f"person {n}" for n in range(10))):
        with sqlite.begin() as session:
            if session.get(Task, "task_kept") is None:
                session.add(kept := Task(id="task_kept", name="kept"))
                session.get_one(Adapter, adapter.id).status = AdapterStatus.ACCEPTED
                session.flush()
                moves.merge(session, kept, [session.get_one(Task, task_id)], by="tests")
        forget(sqlite, settings, user=user)
    assert not (settings.home_path / adapter.path).exists()
    assert list(settings.artifacts.rglob("*.*")) == []


def test_words_in_a_dictionary_that_were_only_theirs_go(db: Database, settings: DistillSettings) -> None:
    """Where a task's requests name nobody, four conversations of one person look like four people's."""
    packer = Packer()
    theirs = [chain.exchange(n, RULES, question=f"{chain.said(n)} I am {CANARY} of Old Street") for n in range(8)]
    others = [chain.exchange(n, RULES) for n in range(100, 132)]
    task_id = chain.write(db, [*others[:4], *theirs, *others[4:]], packer)
    before = {each.id: each.parts() for each in others}
    assert "dictionaries" in said_anywhere(db, settings.home_path, CANARY)
    report = forget(db, settings, captures=[each.id for each in theirs])
    assert said_anywhere(db, settings.home_path, CANARY) == set()
    assert report.dictionaries == 1
    chain.write(db, more := [chain.exchange(n, RULES) for n in range(200, 240)], packer)  # a writer that had it in mind
    assert said_anywhere(db, settings.home_path, CANARY) == set()
    with db.read() as session:
        stored = {each.id: each.parts() for each in session.exec(select(Capture).where(Capture.task_id == task_id))}
        used = set(session.exec(select(Capture.dictionary_id).where(Capture.task_id == task_id)))
    assert stored == before | {each.id: each.parts() for each in more}
    assert len(used - {None}) == 1  # a new one, made of what is left


def test_a_dictionary_of_words_that_others_said_too_stays(sqlite: Database, settings: DistillSettings) -> None:
    chain.write(sqlite, captures())
    with sqlite.read() as session:
        before = session.exec(select(Dictionary.id, Dictionary.packed)).all()
    assert before
    assert forget(sqlite, settings).dictionaries == 0
    with sqlite.read() as session:
        assert session.exec(select(Dictionary.id, Dictionary.packed)).all() == before


def test_names_system_messages_and_templates_made_of_their_words_go(sqlite: Database, settings: DistillSettings) -> None:
    own = f"You are the helper of {CANARY} and of nobody else at all."
    mine = chain.write(sqlite, [chain.exchange(n, own, USER) for n in range(3)])
    shared = chain.write(sqlite, [chain.exchange(n, RULES, "somebody") for n in range(3)])
    with sqlite.begin() as session:
        session.add(TaskTemplate(task_id=shared, scope="x", segments=[RULES[:40]], gaps=[0, 9], changed_by="distill"))
        session.add(TaskTemplate(task_id=mine, scope="x", segments=[f"of {CANARY} and"], gaps=[9, 9], changed_by="distill"))
        assert "xyzzy" in session.get_one(Task, mine).name
    forget(sqlite, settings)
    assert said_anywhere(sqlite, settings.home_path, CANARY, "xyzzy") == set()
    with sqlite.read() as session:
        assert session.get(Task, mine) is None  # nobody else had sent anything of it, and nobody had decided anything
        assert session.get_one(Task, shared).system == RULES
        assert len(session.exec(select(TaskTemplate)).all()) == 1


def dated(words: str, number: int) -> str:
    return f"{words} Today is the {number + 1}th day of the year {1990 + number}. {RULES}"


def test_what_discovery_made_of_their_words_goes_and_is_made_anew_of_what_others_said(
    db: Database, settings: DistillSettings
) -> None:
    """Templates, system texts and names of tasks that it found, merged or divided; one that clients named; one with a student."""
    mine, ours = f"You are the clerk of {CANARY} and of nobody else.", "You are the clerk of everybody who comes in here."
    theirs = [chain.exchange(n, dated(mine, n), USER) for n in range(20)]
    chain.write(db, theirs)
    discovery.turn(db)
    with db.read() as session:
        (found,) = session.exec(select(Task)).all()
    assert CANARY in found.system
    assert "xyzzy" in found.name
    others = [chain.exchange(100 + n, dated(ours, n), f"person {n}") for n in range(20)]
    named = {"metadata": {"task": "letters"}}
    of_many = [
        chain.exchange(200 + n, mine if n == 0 else ours, USER if n == 0 else f"person {n}", request=named) for n in range(3)
    ]
    for some in (others, of_many):
        for capture in some:
            capture.task_id = tasks.identify(orjson.loads(capture.request)).id
        chain.write(db, some)
    discovery.turn(db)
    with db.begin() as session:
        other = session.exec(select(Task).where(col(Task.system).contains("everybody"))).one()
        kept = session.get_one(Task, found.id)
        moves.merge(session, kept, [other], by="tests")
        segments = [f"I am {CANARY} and ask"]
        part = moves.part(session, kept, tasks.Identity(*tasks.part_of(kept.id, segments), teacher_model="big", system=kept.system))
        template = {"task_id": part.id, "scope": kept.id, "segments": segments, "gaps": [9, 9]}
        session.add(TaskTemplate(**template, changed_by=discovery.ACTOR))
        session.flush()
        stored.move(session, sorted(each.id for each in theirs)[-2:], part.id)  # the whole's are looked at before
    student = Task(id="task_5a5a5a5a5a5a5a5a", name=f"xyzzy-plugh-{'5a' * 3}", system=mine, shape="s")
    with db.begin() as session:
        session.add(student)
    alone = [chain.exchange(300 + n, mine, USER, task_id=student.id, answer=f"{CANARY} {n % 4}") for n in range(80)]
    for start in range(0, 80, 20):
        with db.begin() as session:
            stored.write(session, alone[start : start + 20], Packer())
    chain.pair(db, student.id)
    chain.train(db, chain.freeze(db, student.id, settings), settings)
    assert said_anywhere(db, settings.home_path) >= {"tasks", "task_templates"}

    forget(db, settings)
    assert said_anywhere(db, settings.home_path, CANARY, "xyzzy", "plugh", USER) == set()
    with db.read() as session:
        kept = session.get_one(Task, found.id)
        assert kept.system.startswith(ours)
        assert kept.name == tasks.name_of(kept.id, kept.system)
        assert session.get(Task, part.id) is None
        letters = session.exec(select(Task).where(Task.name == "letters")).one()
        assert letters.system == ours
        assert (session.get_one(Task, student.id).system, session.get_one(Task, student.id).name) == ("", student.id)
    discovery.turn(db)  # what is left is learned from again
    with db.read() as session:
        assert session.exec(select(TaskTemplate).where(TaskTemplate.task_id == kept.id)).first() is not None
    assert said_anywhere(db, settings.home_path, CANARY, "xyzzy", "plugh", USER) == set()


def test_a_task_of_which_nothing_else_is_known_loses_its_students(sqlite: Database, settings: DistillSettings) -> None:
    task_id = chain.write(sqlite, [chain.exchange(n, RULES, USER, answer=f"{CANARY} {n % 4}") for n in range(80)])
    chain.pair(sqlite, task_id)
    adapter = chain.train(sqlite, chain.freeze(sqlite, task_id, settings), settings)
    with sqlite.begin() as session:
        routes.point(session, task_id, adapter.id, by="tests", why="")
    report = forget(sqlite, settings)
    with sqlite.read() as session:
        assert session.get_one(Route, task_id).adapter_id is None
    assert list(settings.artifacts.rglob("*.*")) == []
    assert said_anywhere(sqlite, settings.home_path) == set()
    assert "its teacher answers" in report.notes[0]


def test_a_live_adapter_goes_on_until_it_is_replaced_or_is_taken_back_if_asked(sqlite: Database, settings: DistillSettings) -> None:
    task_id, adapter, _ = a_whole_wheel(sqlite, settings)
    with sqlite.begin() as session:
        routes.point(session, task_id, adapter.id, by="tests", why="")
        other = session.exec(select(Capture.id).where(Capture.meta["user"].as_string() == "person 1")).first()  # type: ignore[index]
    assert forget(sqlite, settings).live == [adapter.id]
    report = forget(sqlite, settings, captures=[other], take_back=True)
    assert (report.captures, report.live) == (1, [])
    with sqlite.read() as session:
        assert session.get_one(Route, task_id).adapter_id is None


def test_a_stale_candidate_that_passed_waits_for_a_person(sqlite: Database, settings: DistillSettings) -> None:
    _, adapter, _ = a_whole_wheel(sqlite, settings)
    forget(sqlite, settings)
    with sqlite.read() as session:
        stale = session.get_one(Adapter, adapter.id)
        task = session.get_one(Task, adapter.task_id)
        assert rollout._obstacle(task, stale) == "something that it learned from is erased since"


def test_a_training_under_way_on_what_is_erased_ends_without_an_adapter(sqlite: Database, settings: DistillSettings) -> None:
    from distill import runs

    task_id = chain.write(sqlite, captures())
    chain.pair(sqlite, task_id)
    dataset = chain.freeze(sqlite, task_id, settings)
    with sqlite.begin() as session:
        session.add(run := Run(task_id=task_id, dataset_id=dataset.id, base_model="b", recipe={}, recipe_hash="r"))
        run.status = RunStatus.RUNNING
    forget(sqlite, settings)
    with sqlite.begin() as session:
        again = session.get_one(Run, run.id)
        assert (again.status, again.error) == (RunStatus.FAILED, erasing.ERASED)
        with pytest.raises(runs.RunFailed, match="erased"):
            runs.register(session, again, settings)


def test_the_audit_log_says_what_was_done_and_not_of_whom(sqlite: Database, settings: DistillSettings) -> None:
    a_whole_wheel(sqlite, settings)
    forget(sqlite, settings, user=USER, why="ticket 12")
    with sqlite.read() as session:
        found = select(AuditEvent).where(col(AuditEvent.action).startswith("erasure")).order_by(col(AuditEvent.id))
        begun, done = session.exec(found)
    assert (begun.action, done.action) == ("erasure begun", "erasure done")
    assert (done.detail["captures"], done.detail["why"]) == (12, "ticket 12")
    assert begun.subject == done.subject
    assert begun.subject.startswith("user sha256:")


def test_what_came_under_a_key_is_forgotten_and_an_unknown_key_is_said_to_be(sqlite: Database, settings: DistillSettings) -> None:
    with sqlite.begin() as session:
        key, _ = keys.make(session, "agency", by="tests")
    chain.write(sqlite, [chain.exchange(n, RULES, key_id=key.id if n < 3 else None) for n in range(9)])
    with pytest.raises(NotFound):
        forget(sqlite, settings, key="other")
    assert forget(sqlite, settings, key="agency").captures == 3


def test_captures_are_forgotten_by_their_ids_or_their_pairs(sqlite: Database, settings: DistillSettings) -> None:
    task_id = chain.write(sqlite, captures())
    chain.pair(sqlite, task_id)
    one, two, *_ = chain.ready(sqlite, task_id)
    report = forget(sqlite, settings, captures=[one.id, two.capture_id, "cap_unknown"])
    assert (report.captures, report.pairs) == (2, 2)
    assert {one.id, two.id}.isdisjoint(each.id for each in chain.ready(sqlite, task_id))


def test_a_user_who_is_named_in_another_field_is_found_too(sqlite: Database, settings: DistillSettings) -> None:
    named = [
        chain.exchange(1, RULES, request={"safety_identifier": USER}),
        chain.exchange(2, RULES, request={"metadata": {"user": USER}}),
        chain.exchange(3, RULES, request={"user": USER}),
        chain.exchange(4, RULES, request={"user": f"{USER}.org"}),
        chain.exchange(5, RULES, question=f'"user": "{USER}"'),
    ]
    chain.write(sqlite, named)
    assert forget(sqlite, settings).captures == 3


def test_what_waits_in_the_spool_of_a_dead_proxy_or_was_set_aside_is_forgotten(sqlite: Database, settings: DistillSettings) -> None:
    root = settings.home_path / "spool"
    spool = Spool(Folder.make(root), max_bytes=1 << 20, segment_bytes=1 << 20, grouped=False)
    for user in (USER, "somebody"):
        given = chain.exchange(1, RULES, user, question=f"{user} {CANARY if user == USER else ''}")
        begin = {"kind": "begin", "id": ids.new("cap"), "at": time.time(), "endpoint": given.endpoint}
        begin |= {"task": None, "retry_count": 0}
        spool.append(begin, given.request, nobody)
        end = {"kind": "end", "id": begin["id"], "status": "complete", "http_status": 200}
        spool.append(end, given.response, nobody)
    spool.close()
    aside = root / "rejected"
    aside.mkdir()
    line = {**begin, "id": "cap_aside", "body": chain.exchange(2, RULES, USER).request.decode("latin-1")}
    (aside / "cap_aside.json").write_bytes(orjson.dumps(line) + b"\n")
    assert said_anywhere(sqlite, settings.home_path)
    report = forget(sqlite, settings)
    assert said_anywhere(sqlite, settings.home_path) == set()
    assert (report.captures, report.files, report.notes) == (1, 1, [])
    with sqlite.read() as session:
        assert [each.meta["user"] for each in session.exec(select(Capture))] == ["somebody"]


def test_copies_of_rows_that_a_killed_process_left_are_deleted(sqlite: Database, settings: DistillSettings) -> None:
    task_id = chain.write(sqlite, captures())
    chain.pair(sqlite, task_id)
    dataset = chain.freeze(sqlite, task_id, settings)
    lines = (settings.home_path / dataset.path / "train.jsonl").read_bytes()
    left = [settings.artifacts / task_id / "datasets" / name / "train.jsonl" for name in (".writing-x", "x")]
    for file in left:
        file.parent.mkdir(parents=True)
        file.write_bytes(lines)
    forget(sqlite, settings)
    assert [file.exists() for file in left] == [False, False]
    assert said_anywhere(sqlite, settings.home_path) == set()


def test_by_the_api_and_by_the_command(
    client: TestClient, stillroom: Callable[..., Result], sqlite: Database, settings: DistillSettings
) -> None:
    a_whole_wheel(sqlite, settings)
    assert client.post("/api/erasures", json={}).status_code == 422
    assert client.post("/api/erasures", json={"user": "x", "captures": ["y"]}).status_code == 422
    answer = client.post("/api/erasures", json={"user": USER, "why": "asked"})
    assert (answer.status_code, answer.json()["captures"]) == (200, 12)
    assert stillroom("erase", "--user", "person 1", input="n\n").exit_code == 1
    result = stillroom("erase", "--user", "person 1", "--yes", "--json")
    assert (result.exit_code, orjson.loads(result.stdout)["captures"]) == (0, 12)
    assert stillroom("erase", "--yes").exit_code == 1


def test_one_thing_at_a_time() -> None:
    for given in ({}, {"user": "a", "key": "b"}, {"user": "", "captures": []}):
        with pytest.raises(Invalid):
            erasing.wanted(**given)


def test_every_column_that_names_a_capture_or_a_pair_refers_to_it() -> None:
    """Else what is in such a table would outlive its capture."""
    for table in SQLModel.metadata.sorted_tables:
        for column in table.columns:
            if column.name in {"capture_id", "pair_id"}:
                assert column.foreign_keys, f"{table.name}.{column.name}"


def test_pairs_that_are_erased_while_they_are_frozen_leave_no_files(sqlite: Database, settings: DistillSettings) -> None:
    task_id = chain.write(sqlite, captures())
    chain.pair(sqlite, task_id)

    class Late(Database):
        """One whose first transaction that writes comes after an erasure."""

        @contextmanager
        def begin(self) -> Iterator[Any]:
            forget(sqlite, settings)
            with super().begin() as session:
                yield session

    with pytest.raises(datasets.NotTrainable, match="erased while"):
        datasets.freeze(Late(settings.url), task_id, Policy(), settings)
    assert said_anywhere(sqlite, settings.home_path) == set()
    assert list(settings.artifacts.rglob("*.jsonl")) == []


def test_a_capture_that_cannot_be_read_keeps_nobody_from_being_forgotten(sqlite: Database, settings: DistillSettings) -> None:
    others = [chain.exchange(n, RULES) for n in range(100, 132)]
    theirs = [chain.exchange(n, RULES, question=f"{chain.said(n)} I am {CANARY} of Old Street") for n in range(8)]
    chain.write(sqlite, [*others[:4], *theirs, *others[4:]])
    with sqlite.begin() as session:
        for damaged in (theirs[-1].id, others[-1].id):
            session.execute(sa.update(ROWS).where(ROWS.c.id == damaged).values(packed=b"no frame"))
    assert forget(sqlite, settings, captures=[each.id for each in theirs]).captures == 8
    assert forget(sqlite, settings, user="somebody").captures == 0
    assert [file.name for file in chain.files(settings.home_path) if CANARY.encode() in file.read_bytes()] == []
