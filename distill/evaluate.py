"""Evaluation: every holdout prompt put to the candidate through vLLM, and to the teacher again where there is a key.

Items are stored some at a time as they are answered: what is killed loses the questions under way and the last few answered.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
from sqlmodel import Session, col, select

from distill import agreement, stripping
from distill.agreement import Kind
from distill.datasets import Damaged, Row, check_whole, read
from distill.gate import Counts
from distill.settings import DistillSettings
from serving.vllm import StudentError, StudentRefused, StudentServer, StudentSlow
from store import answers, prompts, teachers
from store.chat import CHAT, RESPONSES, as_chat
from store.columns import now
from store.prompts import Transform, UnseenTemplate
from store.session import Database
from store.states import EvaluationStatus
from store.tables import Adapter, Capture, Dataset, Evaluation, EvaluationItem, Message, Pair
from store.teachers import BadTeachers, NoDeployment, Teacherlist

log = logging.getLogger("stillroom.distill")
ANSWERED = {"stop", "tool_calls"}
SAVE_EVERY = 8
MAX_ATTEMPTS = 8  # in a row that break off with nothing answered
PROBE_SECONDS = 60.0
_UNASKED = {"stream", "stream_options", "metadata", "store", "user"}


class EvaluationFailed(Exception):
    """The evaluation cannot be finished; the message is its row's error."""


@dataclass(frozen=True)
class Question:
    """One holdout row as it is put to student and teacher."""

    row: Row
    request: dict[str, Any]  #: the client's body, less what does not bear on the answer
    endpoint: str = CHAT  #: to which the client sent it

    @property
    def way(self) -> tuple[str, str | None]:
        """What decides how the teacher is asked: endpoint and model."""
        model = self.request.get("model")
        return self.endpoint, model if isinstance(model, str) else None


class Teacher:
    """The teachers asked again with the operator's keys: t1, t2. Silent for good after one refusal: half a noise floor is none."""

    def __init__(self, settings: DistillSettings, questions: Sequence[Question], times: int) -> None:
        """Each of the questions has a teacher with an operator's key, or nothing is asked; `times` it will be in all."""
        self.asks = settings.reask and times <= settings.reask_budget
        self.client = httpx.Client(timeout=120, transport=httpx.HTTPTransport(retries=2))
        self._ways = self._find(settings, {question.way for question in questions}) if self.asks else {}

    def __enter__(self) -> "Teacher":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def answer_twice(self, question: Question) -> list[Message]:
        """[t1, t2], or [] if the teacher is not to be asked, or cannot be."""
        try:
            return [self._answer(question) for _ in range(2)] if self.asks else []
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            self.asks = False
            log.warning("the teacher cannot be asked again, so its own noise stays unknown: %s", error)
            return []

    def _answer(self, question: Question) -> Message:
        way = self._ways[question.way]
        for wait in (1, 2, 4, None):
            response = self.client.post(way.url, json=question.request, headers=way.headers)
            if wait is None or (response.status_code not in {408, 409, 429} and response.status_code < 500):
                break
            time.sleep(wait)
        response.raise_for_status()
        answer = answers.read_json(response.content, question.endpoint)
        if answer.error:
            raise ValueError(answer.error)
        return answer.message

    def _find(self, settings: DistillSettings, wanted: set[tuple[str, str | None]]) -> "dict[tuple[str, str | None], _Way]":
        """How each endpoint's and model's teacher is asked; {} and silence if one cannot be."""
        try:
            listed = teachers.read(settings)
            ways = {(endpoint, model): _way(listed, endpoint, model) for endpoint, model in wanted}
        except (BadTeachers, NoDeployment) as error:
            log.warning("the teacher cannot be asked again, so its own noise stays unknown: %s", error)
            self.asks = False
            return {}
        found = {asked: way for asked, way in ways.items() if way is not None}
        self.asks = len(found) == len(ways)
        return found


@dataclass(frozen=True)
class _Way:
    url: str
    headers: dict[str, str]


def open_evaluation(session: Session, adapter: Adapter, dataset: Dataset) -> Evaluation:
    """The adapter's evaluation on the dataset's holdout, made if there is none."""
    known = session.exec(select(Evaluation).where(Evaluation.adapter_id == adapter.id)).first()
    if known is None:
        known = Evaluation(task_id=adapter.task_id, adapter_id=adapter.id, dataset_id=dataset.id, total=dataset.holdout_rows)
        session.add(known)
    return known


def run(
    db: Database,
    evaluation: Evaluation,
    dataset: Dataset,
    engine: str,
    settings: DistillSettings,
    check: Callable[[], None],
    *,
    context: int | None = None,
) -> None:
    """Ask what has not been asked yet, and mark the evaluation done. `check` raises if this process must stop.

    Raises StudentError if the engine or the adapter is gone; what is answered by then is kept. Raises EvaluationFailed, and marks
    it so, if that happened too often with nothing answered, or if the dataset's files are not what they were.
    """
    try:
        check_whole(dataset, settings)
    except Damaged as damaged:
        _fail(db, evaluation.id, str(damaged))
        raise EvaluationFailed(str(damaged)) from damaged
    rows = list(read(settings.home_path / dataset.path, "holdout"))
    transform = _transform(db, evaluation)
    if transform is not None:  # the teacher answers what has another template
        rows = [row for row in rows if stripping.covers(transform, row.messages)]
    kind = agreement.detect([row.completion for row in rows], [row.response_format for row in rows])
    with db.begin() as session:
        session.get_one(Evaluation, evaluation.id).total = len(rows)
        done = set(session.exec(select(EvaluationItem.pair_id).where(EvaluationItem.evaluation_id == evaluation.id)))
        questions = _questions(session, [row for row in rows if row.pair_id not in done])
    longest = max((len(answers.text_of(row.completion)) for row in rows), default=0)
    with (
        StudentServer(engine, timeout=settings.eval_timeout) as student,
        Teacher(settings, questions, times=2 * len(rows)) as teacher,
        ThreadPoolExecutor(settings.eval_concurrency) as beside,
        ThreadPoolExecutor(settings.eval_concurrency) as pool,
    ):

        def ask(question: Question) -> EvaluationItem:
            again = beside.submit(teacher.answer_twice, question)  # at the same time: the student must not wait for it
            s, latency, error = _ask_student(student, question, evaluation.adapter_id, longest, context, transform)
            return item(evaluation.id, kind, question.row, s, again.result(), latency, error)

        waiting = [pool.submit(ask, question) for question in questions]
        saved: set[Future[EvaluationItem]] = set()

        def save(*, finished: bool = False) -> None:
            """Store what is answered and not stored yet."""
            answered = [f for f in waiting if f not in saved and f.done() and not f.cancelled() and f.exception() is None]
            check()
            _save(db, evaluation.id, kind, [future.result() for future in answered], finished=finished)
            saved.update(answered)

        try:
            for number, future in enumerate(as_completed(waiting), start=1):
                future.result()
                if number % SAVE_EVERY == 0:
                    save()
        except StudentError as error:
            pool.shutdown(wait=True, cancel_futures=True)
            save()
            _broke_off(db, evaluation.id, str(error), answered=bool(saved))
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        save(finished=True)


def item(
    evaluation_id: str, kind: Kind, row: Row, s: Message | None, again: list[Message], latency: float | None, error: str | None
) -> EvaluationItem:
    """One judged row: B, A, stability and hard error, from t0 in the row, t1 and t2 in `again` (or []), and s."""
    t0 = row.completion
    agrees = agreement.agree(kind, s, t0)
    same = [agreement.agree(kind, t, t0) for t in again]
    stable = all(same) and (len(again) < 2 or agreement.agree(kind, again[1], again[0]))
    return EvaluationItem(
        evaluation_id=evaluation_id,
        pair_id=row.pair_id,
        t0=t0,
        t1=again[0] if again else None,
        t2=again[1] if len(again) > 1 else None,
        s=s,
        agrees=agrees,
        teacher_agrees=same[0] if same else None,
        stable=stable,
        hard_error=not agrees and not any(agreement.agree(kind, s, t) for t in again),
        latency_ms=latency,
        error=error,
    )


def count(session: Session, evaluation: Evaluation) -> Counts:
    """The gate's counts over the evaluation's items.

    Unless the teacher was asked again on every row, A is taken as 1 and each row as stable.
    """
    items = session.exec(select(EvaluationItem).where(col(EvaluationItem.evaluation_id) == evaluation.id)).all()
    asked_again = bool(items) and all(i.teacher_agrees is not None for i in items)
    teacher = [bool(i.teacher_agrees) or not asked_again for i in items]
    stable = [i.stable or not asked_again for i in items]
    return Counts(
        n=len(items),
        agree=sum(i.agrees for i in items),
        teacher_agree=sum(teacher),
        b=sum(i.agrees and not a for i, a in zip(items, teacher, strict=True)),
        c=sum(a and not i.agrees for i, a in zip(items, teacher, strict=True)),
        stable_n=sum(stable),
        hard_errors=sum(s and i.hard_error for i, s in zip(items, stable, strict=True)),
        asked_again=asked_again,
    )


def _way(listed: Teacherlist, endpoint: str, model: str | None) -> _Way | None:
    """None without a teacher, or where it has no key of the operator's. Raises BadTeachers, NoDeployment."""
    entry = listed.of(model)
    key = None if entry is None else listed.key(entry)
    if entry is None or key is None:
        return None
    return _Way(entry.address(endpoint.removeprefix("/v1"), model), {**entry.headers, **dict([entry.credential(key)])})


def _transform(db: Database, evaluation: Evaluation) -> Transform | None:
    with db.read() as session:
        transform = session.get_one(Adapter, evaluation.adapter_id).transform
    return None if transform is None else prompts.read(transform)


def _questions(session: Session, rows: Sequence[Row]) -> list[Question]:
    found = []
    for start in range(0, len(rows), 500):  # a database takes so many parameters
        some = rows[start : start + 500]
        behind = select(Pair.id, Capture).join(Capture, col(Capture.id) == col(Pair.capture_id))
        captures = dict(session.exec(behind.where(col(Pair.id).in_([row.pair_id for row in some]))).all())
        redacted = set(session.exec(select(Pair.id).where(col(Pair.id).in_(captures), Pair.redacted > 0)))
        found += [_question(row, captures[row.pair_id], redacted=row.pair_id in redacted) for row in some]
    return found


def _question(row: Row, capture: Capture, *, redacted: bool) -> Question:
    request = {key: value for key, value in orjson.loads(capture.request).items() if key not in _UNASKED}
    if redacted:  # the answer has what stands in the row's copy, not what the client sent
        return Question(row, {**as_chat(capture.endpoint, request), "messages": row.messages})
    # The teacher keeps what is answered here unless it is told not to.
    return Question(row, {**request, "store": False} if capture.endpoint == RESPONSES else request, capture.endpoint)


def _ask_student(
    student: StudentServer, question: Question, adapter_id: str, longest: int, context: int | None, transform: Transform | None
) -> tuple[Message | None, float | None, str | None]:
    """(answer, milliseconds, error): the answer is None when serving would not have given it to a client."""
    request = as_chat(question.endpoint, question.request)
    if request.get("max_tokens") is None and request.get("max_completion_tokens") is None:
        request = {**request, "max_tokens": longest + 16}  # a token is at least one character of the longest answer ever seen
    begun = time.monotonic()
    try:
        data = student.complete(prompts.for_student(request, adapter_id, context, transform=transform))
    except StudentSlow as slow:
        student.probe(adapter_id, PROBE_SECONDS)  # raises if it is the engine that is in trouble, not this question
        return None, (time.monotonic() - begun) * 1000, str(slow)[:500]
    except (StudentRefused, UnseenTemplate) as refused:  # anything else is the engine's trouble, not the student's
        return None, None, str(refused)[:500]
    milliseconds = (time.monotonic() - begun) * 1000
    answer = answers.read_json(orjson.dumps(data))
    if answer.finish_reason not in ANSWERED:
        return None, milliseconds, f"the answer did not finish: {answer.finish_reason}"
    return answer.message, milliseconds, answer.error


def _save(db: Database, evaluation_id: str, kind: Kind, items: list[EvaluationItem], *, finished: bool = False) -> None:
    with db.begin() as session:
        evaluation = session.get_one(Evaluation, evaluation_id)
        session.add_all(items)
        evaluation.answered += len(items)
        evaluation.attempts = 0 if items else evaluation.attempts
        evaluation.kind = kind
        if finished:
            evaluation.status, evaluation.finished_at = EvaluationStatus.DONE, now()


def _broke_off(db: Database, evaluation_id: str, error: str, *, answered: bool) -> None:
    """Count an attempt in which nothing was answered. Raises EvaluationFailed if it was the last one."""
    if answered:
        return
    with db.begin() as session:
        evaluation = session.get_one(Evaluation, evaluation_id)
        evaluation.attempts += 1
    if evaluation.attempts >= MAX_ATTEMPTS:
        why = f"broke off {evaluation.attempts} times in a row with nothing answered: {error}"
        _fail(db, evaluation_id, why)
        raise EvaluationFailed(f"its evaluation {why}")


def _fail(db: Database, evaluation_id: str, error: str) -> None:
    with db.begin() as session:
        evaluation = session.get_one(Evaluation, evaluation_id)
        evaluation.status, evaluation.error, evaluation.finished_at = EvaluationStatus.FAILED, error, now()
