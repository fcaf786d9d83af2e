"""One turn of the wheel with a tiny random model, a real trainer process and a student server that is a real HTTP server."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import orjson
import pytest
from pydantic import SecretStr
from sqlmodel import desc, func, select

from distill import datasets, evaluate, lineage, pipeline, recipe, runs
from distill.settings import DistillSettings
from store import leases, policy
from store.session import Database
from store.states import AdapterStatus, EngineStatus, EvaluationStatus, Outcome, RolloutStage, RunStatus
from store.tables import Adapter, AuditEvent, Engine, Evaluation, EvaluationItem, Pair, Rollout, Run, RunStep, Task, Verdict
from tests.distill.conftest import exchange

Answer = Callable[[str, bool], str]  #: (the prompt's number, asked as the teacher) -> answer


def oracle(number: str, _teacher: bool) -> str:
    return "even" if int(number) % 2 == 0 else "odd"


@contextmanager
def server(answer: Answer) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """Student and teacher in one: answers each number; a request that names the model `big` is the teacher's."""
    asked: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
            if "prompt" in body:  # a probe
                return self.send(200, {"choices": [{"index": 0, "text": "!"}]})
            asked.append(body)
            said = answer(body["messages"][-1]["content"], body["model"] == "big")
            status = 500 if said == "CRASH" else 200
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
            return self.send(status, {"choices": [choice]} if status == 200 else {"error": {"message": "EngineDeadError"}})

        def send(self, status: int, said: dict[str, object]) -> None:
            data = orjson.dumps(said)
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            return

    class Listening(ThreadingHTTPServer):
        request_queue_size = 100

    listening = Listening(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}", asked
    finally:
        listening.shutdown()


@pytest.fixture
def settings(tmp_path: Path) -> DistillSettings:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("epochs = 1\nrank = 2\n")
    return DistillSettings(home=tmp_path, recipe=recipe, stage_timeout=20, estimate=False)


@pytest.fixture
def task(db: Database, put: Callable[..., str]) -> str:
    task_id = put(*(exchange(str(n), oracle(str(n), True)) for n in range(400)))
    with db.begin() as session:
        session.get_one(Task, task_id).policy = policy.Policy(holdout=0.9).model_dump(exclude_defaults=True)
    return task_id


def engine(db: Database, base: Path, url: str, context: int | None = None) -> None:
    with db.begin() as session:
        row = Engine(id="e", url=url, status=EngineStatus.READY, base_model="tiny", base_path=str(base), context=context)
        session.merge(row)


@contextmanager
def serving(db: Database, stage: RolloutStage) -> Iterator[None]:
    """What serving does to a candidate, in a thread."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            with db.begin() as session:
                known = select(Rollout.adapter_id)
                for adapter in session.exec(select(Adapter).where(Adapter.id.not_in(known))):  # type: ignore[attr-defined]
                    session.add(Rollout(task_id=adapter.task_id, adapter_id=adapter.id, stage=stage))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_turn_ends_in_a_verdict_with_its_numbers_and_turning_again_changes_nothing(
    db: Database, task: str, base: Path, settings: DistillSettings
) -> None:
    with server(oracle) as (url, asked), serving(db, RolloutStage.STAGED):
        engine(db, base, url)
        verdict = pipeline.turn(db, task, settings)
        assert verdict is not None
        assert verdict.outcome == Outcome.PASSED
        assert verdict.numbers["agree"] == verdict.numbers["n"] > 300
        assert verdict.numbers["kind"] == "label"
        assert not verdict.numbers["asked_again"]
        assert {body["model"] for body in asked} == {f"{task}@v1"}
        assert all(body["temperature"] == 0.0 and body["max_tokens"] for body in asked)
        again = pipeline.turn(db, task, settings)
    assert again is not None
    assert again.id == verdict.id
    with db.read() as session:
        run = session.exec(select(Run)).one()
        assert (run.status, run.step, run.attempts) == (RunStatus.SUCCEEDED, run.total_steps, 0)
        assert run.rows_per_second
        assert session.exec(select(func.count()).select_from(RunStep)).one() >= 1
        assert session.exec(select(Adapter.status)).one() == AdapterStatus.ACCEPTED
        evaluation = session.exec(select(Evaluation)).one()
        assert (evaluation.status, evaluation.answered) == (EvaluationStatus.DONE, evaluation.total)


def test_with_the_operators_key_the_teacher_is_asked_twice_again(
    db: Database, task: str, base: Path, settings: DistillSettings
) -> None:
    def noisy(number: str, teacher: bool) -> str:
        return "neither" if teacher and number.endswith("7") else oracle(number, teacher)

    with server(noisy) as (url, asked), serving(db, RolloutStage.STAGED):
        engine(db, base, url)
        keyed = settings.model_copy(update={"teacher_url": f"{url}/v1", "teacher_key": key()})
        verdict = pipeline.turn(db, task, keyed)
    assert verdict is not None
    numbers = verdict.numbers
    assert numbers["asked_again"]
    assert numbers["self_agreement"] == pytest.approx(0.9, abs=0.03)
    assert numbers["stable_n"] == numbers["teacher_agree"]
    assert numbers["b"] == numbers["n"] - numbers["teacher_agree"]
    assert sum(body["model"] == "big" for body in asked) == 2 * numbers["n"]


def key() -> SecretStr:
    return SecretStr("operators-key")


def test_an_engine_that_dies_in_the_middle_costs_only_the_questions_under_way(
    db: Database, task: str, base: Path, settings: DistillSettings
) -> None:
    chances, answered = list(range(100)), list[str]()

    def dying(number: str, _teacher: bool) -> str:
        try:
            chances.pop()
        except IndexError:
            return "CRASH"
        answered.append(number)
        return oracle(number, False)

    with serving(db, RolloutStage.STAGED):
        with server(dying) as (url, _):
            engine(db, base, url)
            with pytest.raises(pipeline.NotReady, match="stopped answering"):
                pipeline.turn(db, task, settings)
        with db.read() as session:
            kept = session.exec(select(func.count()).select_from(EvaluationItem)).one()
            assert kept == len(answered) == 100
        with server(oracle) as (url, asked):
            engine(db, base, url)
            verdict = pipeline.turn(db, task, settings)
    assert verdict is not None
    assert len(asked) == verdict.numbers["n"] - kept
    with db.read() as session:
        assert session.exec(select(Evaluation.attempts)).one() == 0
        assert session.exec(select(func.count()).select_from(Run)).one() == 1


@pytest.mark.parametrize("stage", [RolloutStage.REFUSED, RolloutStage.ROLLED_BACK, RolloutStage.RETIRED])
def test_a_candidate_that_was_refused_or_taken_back_before_its_verdict_ends_the_turn(
    db: Database, task: str, base: Path, settings: DistillSettings, stage: RolloutStage
) -> None:
    with serving(db, stage):
        engine(db, base, "http://127.0.0.1:1")
        assert pipeline.turn(db, task, settings) is None
    with db.read() as session:
        assert session.exec(select(Adapter.status)).one() == AdapterStatus.REFUSED
        assert session.exec(select(Verdict)).first() is None
        why = session.exec(select(AuditEvent.detail).where(AuditEvent.action == "adapter").order_by(desc(AuditEvent.id))).first()
        assert why is not None
        assert why["why"].startswith(f"it is {stage}")
        assert runs.unfinished(session, task) is None


def test_without_a_vllm_the_turn_says_what_to_start(db: Database, task: str, settings: DistillSettings) -> None:
    with pytest.raises(pipeline.NotReady, match="stillroom up"):
        pipeline.turn(db, task, settings)


def test_a_missing_base_model_fails_the_run_with_the_trainers_words(
    db: Database, task: str, tmp_path: Path, settings: DistillSettings
) -> None:
    engine(db, tmp_path / "nothing", "http://127.0.0.1:1")
    with pytest.raises(runs.RunFailed, match="no model folder"):
        pipeline.turn(db, task, settings)
    with db.read() as session:
        run = session.exec(select(Run)).one()
    assert run.status == RunStatus.FAILED
    assert "no model folder" in (run.error or "")
    with pytest.raises(runs.RunFailed, match="ask for a training"):
        pipeline.turn(db, task, settings)


def test_a_question_that_takes_too_long_is_no_answer_and_the_evaluation_goes_on(
    db: Database, task: str, base: Path, settings: DistillSettings
) -> None:
    def slow(number: str, _teacher: bool) -> str:
        if number == "35":  # one that is held out
            time.sleep(3)
        return oracle(number, False)

    with server(slow) as (url, _), serving(db, RolloutStage.STAGED):
        engine(db, base, url)
        verdict = pipeline.turn(db, task, settings.model_copy(update={"eval_timeout": 1.5}))
    assert verdict is not None
    assert verdict.numbers["agree"] == verdict.numbers["n"] - 1
    with db.read() as session:
        item = session.exec(select(EvaluationItem).where(EvaluationItem.error != None)).one()  # noqa: E711
    assert "in time" in (item.error or "")
    assert item.s is None


def test_an_evaluation_that_can_never_be_finished_is_given_up_and_says_why(
    db: Database, task: str, base: Path, settings: DistillSettings
) -> None:
    with server(lambda *_: "CRASH") as (url, _), serving(db, RolloutStage.STAGED):
        engine(db, base, url)
        for _ in range(evaluate.MAX_ATTEMPTS - 1):
            with pytest.raises(pipeline.NotReady, match="stopped answering"):
                pipeline.turn(db, task, settings)
        assert pipeline.turn(db, task, settings) is None
    with db.read() as session:
        evaluation = session.exec(select(Evaluation)).one()
        assert (evaluation.status, evaluation.attempts) == (EvaluationStatus.FAILED, evaluate.MAX_ATTEMPTS)
        assert "EngineDeadError" in (evaluation.error or "")
        assert session.exec(select(Adapter.status)).one() == AdapterStatus.REFUSED
        assert runs.unfinished(session, task) is None


def test_a_run_begun_for_another_base_model_fails_and_a_new_one_is_trained(
    db: Database, task: str, base: Path, settings: DistillSettings
) -> None:
    pipeline.gather(db, task)
    dataset = datasets.freeze(db, task, policy.Policy(), settings)
    with db.begin() as session:
        older = runs.open_run(session, dataset, "another", recipe.load(settings.recipe))
    with server(oracle) as (url, _), serving(db, RolloutStage.STAGED):
        engine(db, base, url)
        assert pipeline.turn(db, task, settings) is not None
    with db.read() as session:
        older = session.get_one(Run, older.id)
        assert older.status == RunStatus.FAILED
        assert "base model another, and vLLM has tiny" in (older.error or "")
        assert session.exec(select(Adapter.base_model)).one() == "tiny"


def test_longer_answers_than_the_engine_has_room_for_are_not_asked_for(
    db: Database, put: Callable[..., str], base: Path, settings: DistillSettings
) -> None:
    task = put(*(exchange(str(n), oracle(str(n), True), request={"max_tokens": 100_000}) for n in range(60)))
    with server(oracle) as (url, asked), serving(db, RolloutStage.STAGED):
        engine(db, base, url, context=512)
        assert pipeline.turn(db, task, settings) is not None
    assert {body["max_tokens"] for body in asked} == {512}


def test_a_recipe_or_a_policy_that_cannot_be_read_is_told(
    db: Database, task: str, base: Path, settings: DistillSettings, tmp_path: Path
) -> None:
    engine(db, base, "http://127.0.0.1:1")
    bad = tmp_path / "bad.toml"
    bad.write_text("epochs = 0")
    with pytest.raises(pipeline.NotReady, match="epochs"):
        pipeline.turn(db, task, settings.model_copy(update={"recipe": bad}))
    with db.begin() as session:
        session.get_one(Task, task).policy = {"growth": "much"}
    with pytest.raises(pipeline.NotReady, match=r"policy of .* cannot be read"):
        pipeline.turn(db, task, settings)


def test_free_text_is_never_passed_by_itself(db: Database, put: Callable[..., str], base: Path, settings: DistillSettings) -> None:
    task = put(*(exchange(str(n), f"The number {n} is one that nobody has seen before, I think.") for n in range(60)))
    said = "The number {} is one that nobody has seen before, I think.".format
    with server(lambda number, _: said(number)) as (url, _), serving(db, RolloutStage.STAGED):
        engine(db, base, url)
        verdict = pipeline.turn(db, task, settings)
    assert verdict is not None
    assert verdict.outcome == Outcome.INSUFFICIENT
    assert "free text" in verdict.reason


def test_a_student_without_the_long_prompt_is_trained_judged_and_kept_with_its_transform(
    db: Database, put: Callable[..., str], base: Path, settings: DistillSettings
) -> None:
    """Of the fixed part nothing reaches it; what has another template is the teacher's, and is not asked."""
    assert settings.recipe is not None
    settings.recipe.write_text("epochs = 1\nrank = 2\nstrip = true\n")
    strange = {10, 380, 390, 399}
    rules = "Say whether the number is odd or even. Answer with one word, in lower case, and never explain it to anybody."

    def request(n: int) -> dict[str, object]:
        system = f"{rules} Today is day {n} of the year." if n not in strange else "Odd or even?"
        return {"messages": [{"role": "system", "content": system}, {"role": "user", "content": str(n)}], "metadata": {"task": "t"}}

    task_id = put(*(exchange(str(n), oracle(str(n), True), request=request(n)) for n in range(400)))
    with db.begin() as session:
        session.get_one(Task, task_id).policy = {"holdout": 0.8}
    with server(oracle) as (url, asked), serving(db, RolloutStage.STAGED):
        engine(db, base, url)
        verdict = pipeline.turn(db, task_id, settings)
    assert verdict is not None
    shown = [body["messages"] for body in asked]
    assert all("Answer with one word" not in str(messages) for messages in shown)
    assert {len(messages) for messages in shown} == {2}  # the day stays
    assert not any(int(messages[-1]["content"]) in strange for messages in shown)  # type: ignore[index]
    with db.read() as session:
        adapter = session.exec(select(Adapter)).one()
        evaluation = session.exec(select(Evaluation)).one()
    assert adapter.transform is not None
    assert orjson.loads((settings.home_path / adapter.path / "transform.json").read_bytes()) == adapter.transform
    assert evaluation.answered == evaluation.total == len(shown)
    assert [hop.name for hop in lineage.verify(db, adapter.id, settings) if hop.failures] == []
    card = (settings.home_path / adapter.path / "README.md").read_text()
    assert verdict.reason in card
    assert "without the fixed part" in card


def test_pairs_are_made_by_one_at_a_time(db: Database, put: Callable[..., str], settings: DistillSettings) -> None:
    """Two at once would not know of each other's clusters."""
    task = put(*(exchange(f"Is {n} odd?", "odd") for n in range(30)))

    def pairs() -> int:
        with db.read() as session:
            return session.exec(select(func.count()).select_from(Pair)).one()

    with leases.hold(db, f"pairs {task}", "another", 60):
        pipeline.gather_alone(db, task, settings)
        assert pairs() == 0
    with leases.hold(db, f"pairs {task}", leases.this_thread(), 60):
        other = threading.Thread(target=pipeline.gather_alone, args=(db, task, settings))
        other.start()
        other.join()
        assert pairs() == 0
    pipeline.gather_alone(db, task, settings)
    assert pairs() == 30
