"""Evaluation: every holdout prompt put to the candidate through vLLM, and to the teacher again where there is a key.

Items are stored as they are answered: a crash costs the questions under way, no more.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
from sqlmodel import Session, col, select

from distill import agreement
from distill.agreement import Kind
from distill.datasets import Row, read
from distill.gate import Counts
from distill.settings import DistillSettings
from serving.vllm import StudentRefused, StudentServer
from store import answers, prompts
from store.columns import now
from store.session import Database
from store.states import EvaluationStatus
from store.tables import Adapter, Capture, Dataset, Evaluation, EvaluationItem, Message, Pair

log = logging.getLogger("stillroom.distill")
ANSWERED = {"stop", "tool_calls"}
SAVE_EVERY = 8


@dataclass(frozen=True)
class Question:
    """One holdout row as it is put to student and teacher."""

    row: Row
    request: dict[str, Any]  #: the client's body


class Teacher:
    """The teacher asked again with the operator's key: t1 and t2. Silent for good after one refusal: half a noise floor is none."""

    def __init__(self, settings: DistillSettings, questions: int) -> None:
        key = settings.teacher_key.get_secret_value() if settings.teacher_key else ""
        self.asks = bool(key) and settings.reask and questions <= settings.reask_budget
        self.client = httpx.Client(
            base_url=settings.teacher_url.rstrip("/") + "/",
            timeout=120,
            headers={"authorization": f"Bearer {key}"},
            transport=httpx.HTTPTransport(retries=2),
        )

    def __enter__(self) -> "Teacher":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def answer_twice(self, request: dict[str, Any]) -> list[Message]:
        """[t1, t2], or [] if the teacher is not to be asked, or cannot be."""
        try:
            return [self._answer(request) for _ in range(2)] if self.asks else []
        except (httpx.HTTPError, ValueError) as error:
            self.asks = False
            log.warning("the teacher cannot be asked again, so its own noise stays unknown: %s", error)
            return []

    def _answer(self, request: dict[str, Any]) -> Message:
        for wait in (1, 2, 4, None):
            response = self.client.post("chat/completions", json=request)
            if wait is None or (response.status_code not in {408, 409, 429} and response.status_code < 500):
                break
            time.sleep(wait)
        response.raise_for_status()
        answer = answers.read_json(response.content)
        if answer.error:
            raise ValueError(answer.error)
        return answer.message


def open_evaluation(session: Session, adapter: Adapter, dataset: Dataset) -> Evaluation:
    """The adapter's evaluation on the dataset's holdout, made if there is none."""
    known = session.exec(select(Evaluation).where(Evaluation.adapter_id == adapter.id)).first()
    if known is None:
        known = Evaluation(task_id=adapter.task_id, adapter_id=adapter.id, dataset_id=dataset.id, total=dataset.holdout_rows)
        session.add(known)
    return known


def run(
    db: Database, evaluation: Evaluation, dataset: Dataset, engine: str, settings: DistillSettings, check: Callable[[], None]
) -> None:
    """Ask what has not been asked yet, and mark the evaluation done. `check` raises if this process must stop.

    Raises StudentError if the engine or the adapter is gone; what is answered by then is kept.
    """
    rows = list(read(settings.home_path / dataset.path, "holdout"))
    kind = agreement.detect([row.completion for row in rows], [row.response_format for row in rows])
    with db.read() as session:
        done = set(session.exec(select(EvaluationItem.pair_id).where(EvaluationItem.evaluation_id == evaluation.id)))
        questions = [Question(row, _request(session, row)) for row in rows if row.pair_id not in done]
    longest = max((len(answers.text_of(row.completion)) for row in rows), default=0)
    with (
        StudentServer(engine) as student,
        Teacher(settings, questions=2 * len(rows)) as teacher,
        ThreadPoolExecutor(settings.eval_concurrency) as pool,
    ):

        def ask(question: Question) -> EvaluationItem:
            s, latency, error = _ask_student(student, question, evaluation.adapter_id, longest)
            return item(evaluation.id, kind, question.row, s, teacher.answer_twice(question.request), latency, error)

        waiting = [pool.submit(ask, question) for question in questions]
        answered: list[EvaluationItem] = []
        try:
            for future in as_completed(waiting):
                answered.append(future.result())
                if len(answered) >= SAVE_EVERY:
                    check()
                    _save(db, evaluation.id, kind, answered)
                    answered = []
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        check()
        _save(db, evaluation.id, kind, answered, finished=True)


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


def _request(session: Session, row: Row) -> dict[str, Any]:
    body = session.exec(
        select(Capture.request).join(Pair, col(Pair.capture_id) == col(Capture.id)).where(Pair.id == row.pair_id)
    ).one()
    request: dict[str, Any] = orjson.loads(body)
    return {key: value for key, value in request.items() if key not in {"stream", "stream_options", "metadata", "store", "user"}}


def _ask_student(
    student: StudentServer, question: Question, adapter_id: str, longest: int
) -> tuple[Message | None, float | None, str | None]:
    """(answer, milliseconds, error): the answer is None when serving would not have given it to a client."""
    body = prompts.for_student(question.request, adapter_id)
    if "max_tokens" not in body and "max_completion_tokens" not in body:
        body["max_tokens"] = longest + 16  # a token is at least one character of the longest answer ever seen
    begun = time.monotonic()
    try:
        data = student.complete(body)
    except StudentRefused as refused:  # anything else is the engine's trouble, not the student's
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
        evaluation.kind = kind
        if finished:
            evaluation.status, evaluation.finished_at = EvaluationStatus.DONE, now()
