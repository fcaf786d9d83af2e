"""A routed request: the student answers as if it were the teacher, or the teacher answers as if there were no student."""

import time

import httpx
import openai
import orjson
import pytest
from sqlmodel import select

from store import routes, tasks
from store.prompts import Piece, Transform
from store.states import CaptureStatus, Server
from store.tables import Adapter, Dataset, Engine, Run, Task
from tests.proxy.conftest import ADAPTER, chat, until
from tests.proxy.upstream import abort, completion, events, hang, json, stream

JSON_ASKED = {"response_format": {"type": "json_object"}}
CALL = {"id": "t-1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def test_a_routed_request_is_answered_by_the_student_under_the_model_the_client_asked_for(start, route, teacher, student, captures):
    proxy = start()
    route(proxy)
    answer = proxy.chat(chat(temperature=1.5, seed=7))
    assert answer.headers["x-stillroom-served-by"] == "student"
    assert answer.headers["x-request-id"] == answer.headers["x-stillroom-id"]
    assert answer.json() == {**completion("from the student"), "model": "big-1"}
    asked = student.seen[0]
    assert (asked.target, asked.json["model"], asked.json["temperature"]) == ("/v1/chat/completions", ADAPTER, 0.0)
    assert "seed" not in asked.json
    assert not asked.header("authorization")
    assert len(teacher.seen) == 1  # what made the key trusted
    (capture,) = captures(1)
    assert (capture.served_by, capture.adapter_id, capture.model) == (Server.STUDENT, ADAPTER, "big-1")
    assert (capture.answer_text, capture.status, capture.fallback) == ("from the student", CaptureStatus.COMPLETE, None)


def test_a_students_stream_names_the_clients_model_in_every_chunk_and_usage_only_if_asked(start, route, student, captures):
    usage = b'data: {"id":"c","model":"as-served","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
    whole = events("Grüße", "!")
    sent = b"".join([*whole[:-1], usage, whole[-1]])
    student.reply = stream([sent[i : i + 5] for i in range(0, len(sent), 5)])
    proxy = start()
    route(proxy)
    plain = proxy.chat(chat(stream=True))
    asked = proxy.chat(chat(stream=True, stream_options={"include_usage": True}))
    chunks = [orjson.loads(line[6:]) for line in asked.text.splitlines() if line.startswith("data: {")]
    assert {chunk["model"] for chunk in chunks} == {"big-1"}
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert (plain.text.count("data: "), asked.text.count("data: ")) == (5, 6)
    assert plain.text.endswith("data: [DONE]\n\n")
    assert "usage" not in plain.text
    assert [capture.answer_text for capture in captures(2)] == ["Grüße!", "Grüße!"]


BAD = [
    (abort, "was lost"),
    (hang, "no answer within 1.5 s"),
    (json({"error": "x"}, 500), "answered 500"),
    (json({"error": "no such adapter"}, 404), "answered 404"),
    (json(b"<html>"), "student: "),
    (json({"error": {"message": "out of memory"}}), "student: "),
    (stream([b"data: {\n\n"]), "no JSON"),
    (stream(events("", "")[:2], after="hang"), "no answer within 1.5 s"),
    (stream(events("")[:1], after="cut"), "student: "),
    (stream([b'data: {"error": {"message": "out of memory"}}\n\n', b"data: [DONE]\n\n"]), "student: "),
    (stream([b"data: [DONE]\n\n"]), "student: "),
]


@pytest.mark.parametrize("streamed", [True, False])
def test_whatever_is_wrong_with_the_student_the_teacher_answers(start, route, student, captures, streamed):
    proxy = start(student_timeout=1.5)
    route(proxy)
    for number, (reply, why) in enumerate(BAD):
        student.reply = stream(events("fine")) if streamed else json(completion("fine"))  # keeps the breaker closed
        assert proxy.chat(chat(stream=streamed)).headers["x-stillroom-served-by"] == "student"
        student.reply = reply
        answer = proxy.chat(chat(stream=streamed))
        assert (answer.status_code, answer.json()) == (200, completion("from the teacher"))
        assert answer.headers["x-stillroom-served-by"] == "teacher"
        capture = captures(2 * number + 2)[-1]
        assert (capture.served_by, capture.adapter_id, capture.status) == (Server.TEACHER, None, CaptureStatus.COMPLETE)
        assert why in capture.fallback


def test_a_student_that_is_gone_is_not_noticed(start, route, student, captures):
    proxy = start()
    route(proxy)
    student.stop()
    assert proxy.chat().json() == completion("from the teacher")
    assert "cannot connect" in captures(1)[0].fallback


def test_a_whole_answer_is_looked_at_before_it_is_sent(start, route, student):
    calls = {"message": {"role": "assistant", "content": None, "tool_calls": [CALL]}}
    proxy = start()
    for fields, body, by in [
        ({}, completion("cut sho", finish_reason="length"), "teacher"),
        ({}, completion("", finish_reason="content_filter"), "teacher"),
        ({}, completion("", **calls, finish_reason="tool_calls"), "student"),
        (JSON_ASKED, completion('{"a": 1}'), "student"),
        (JSON_ASKED, completion('{"a": 1'), "teacher"),
        (JSON_ASKED, completion("", **calls), "student"),
    ]:
        student.reply = json(body)
        request = chat(**fields)
        route(proxy, request=request)
        assert proxy.chat(request).headers["x-stillroom-served-by"] == by


def test_an_answer_that_is_not_good_enough_does_not_open_the_breaker(start, route, student):
    student.reply = json(completion("cut", finish_reason="length"))
    proxy = start()
    route(proxy)
    for _ in range(7):
        proxy.chat()
    assert len(student.seen) == 7
    assert set(proxy.ready()["engines"].values()) == {"closed"}


def test_a_student_that_dies_in_mid_stream_ends_in_one_error_and_no_second_voice(start, route, student, captures):
    student.reply = stream(events("half ", "an answer")[:3], after="cut")
    proxy = start()
    route(proxy)
    got: list[bytes] = []
    with (
        proxy.client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        got.extend(answer.iter_raw())
    assert answer.headers["x-stillroom-served-by"] == "student"
    assert b"".join(got).count(b'"error"') == 1
    assert orjson.loads(b"".join(got).split(b"data: ")[-1])["error"]["code"] == "student_died"
    assert b"from the teacher" not in b"".join(got)
    (capture,) = captures(1)
    assert (capture.status, capture.served_by, capture.answer_text) == (CaptureStatus.INCOMPLETE, Server.STUDENT, "half an answer")
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="sk-canary-7f3a9d", max_retries=0) as client:
        chunks = client.chat.completions.create(**chat(stream=True))
        with pytest.raises(openai.APIError, match="The student stopped"):
            list(chunks)


def test_after_five_failures_the_student_is_left_alone(start, route, student, captures):
    student.reply = json({}, 500)
    proxy = start()
    route(proxy)
    for _ in range(8):
        assert proxy.chat().status_code == 200
    assert len(student.seen) == 5
    assert proxy.ready()["engines"] == {student.url: "open"}
    assert captures(8)[-1].fallback == "student: the breaker is open"


def test_the_holdback_stays_with_the_teacher(start, route, teacher, student):
    proxy = start()
    route(proxy, holdback=0.5)
    by = [proxy.chat().headers["x-stillroom-served-by"] for _ in range(60)]
    assert 10 < by.count("teacher") < 50
    assert proxy.chat(x_stillroom_route="teacher").headers["x-stillroom-served-by"] == "teacher"
    assert {proxy.chat(x_stillroom_route="Student").headers["x-stillroom-served-by"] for _ in range(10)} == {"student"}


@pytest.mark.parametrize(("held", "status"), [({"holdback": 1.0}, 200), ({"holdback": 1.0, "trust": False}, 502)])
def test_when_the_teacher_is_down_the_student_answers_what_was_held_back(start, route, teacher, held, status):
    proxy = start()
    route(proxy, **held)
    teacher.stop()
    answer = proxy.chat()
    assert (answer.status_code, answer.headers["x-stillroom-served-by"]) == (status, "student" if status == 200 else "teacher")
    assert proxy.chat(x_stillroom_route="teacher").status_code == 502


def test_a_student_answers_only_keys_that_the_teacher_has_accepted(start, route, teacher, student):
    proxy = start()
    route(proxy, trust=False)
    teacher.reply = json({"error": {"message": "who are you?"}}, 401)
    assert [proxy.chat().status_code for _ in range(2)] == [401, 401]
    assert not student.seen
    teacher.reply = json(completion("ok"))
    assert [proxy.chat().headers["x-stillroom-served-by"] for _ in range(2)] == ["teacher", "student"]
    assert proxy.chat(authorization="Bearer another").headers["x-stillroom-served-by"] == "teacher"


def test_with_the_operators_key_every_client_is_trusted(start, route, student):
    proxy = start(teacher_key="sk-operator")
    route(proxy, trust=False)
    assert proxy.chat().headers["x-stillroom-served-by"] == "student"


def test_no_longer_answer_is_asked_for_than_the_engine_has_room_for(start, route, student, db):
    proxy = start()
    route(proxy)
    with db.begin() as session:
        session.exec(select(Engine)).one().context = 512
    until(lambda: proxy.chat(chat(max_tokens=100_000)) and student.seen[-1].json["max_tokens"] == 512)


def test_a_client_that_leaves_frees_the_student(start, route, student, captures):
    student.reply = stream(events("half")[:2], after="hang")
    proxy = start(student_timeout=20)
    route(proxy)
    with pytest.raises(httpx.ReadTimeout):
        proxy.client.post("/v1/chat/completions", json=chat(stream=True), timeout=0.4)
    assert student.seen[0].left.wait(1)
    assert captures(1)[0].status == CaptureStatus.INCOMPLETE


def test_a_route_that_is_taken_back_is_followed_within_a_second(start, route, student, db):
    proxy = start(route_seconds=1.0)
    route(proxy)
    assert proxy.chat().headers["x-stillroom-served-by"] == "student"
    with db.begin() as session:
        routes.point(session, tasks.identify(chat()).id, None, by="test", why="rollback")
    changed = time.monotonic()
    until(lambda: proxy.chat().headers["x-stillroom-served-by"] == "teacher")
    assert time.monotonic() - changed < 2


def test_a_student_that_dies_in_the_middle_of_every_stream_is_left_alone_too(start, route, student):
    student.reply = stream(events("half ", "an answer")[:3], after="cut")
    proxy = start()
    route(proxy)
    for _ in range(5):
        with pytest.raises(httpx.RemoteProtocolError):
            proxy.chat(chat(stream=True))
    assert proxy.chat(chat(stream=True)).headers["x-stillroom-served-by"] == "teacher"
    assert proxy.ready()["engines"] == {student.url: "open"}


def test_a_stream_that_ends_well_makes_up_for_those_that_did_not(start, route, student):
    proxy = start()
    route(proxy)
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="sk-canary-7f3a9d", max_retries=0) as client:
        for _ in range(2):
            student.reply = stream(events("half ", "an answer")[:3], after="cut")
            for _ in range(4):
                with pytest.raises(httpx.RemoteProtocolError):
                    proxy.chat(chat(stream=True))
            student.reply = stream(events("whole"), after="hang")  # the SDK leaves behind [DONE]
            assert len(list(client.chat.completions.create(**chat(stream=True)))) == 3
    assert proxy.ready()["engines"] == {student.url: "closed"}


DEEP = b"[" * 300 + b"]" * 300  # deeper than what goes to the student can be written


@pytest.mark.parametrize("field", [b"stop", b"tools"])
def test_a_request_that_cannot_be_put_to_the_student_is_the_teachers(start, route, teacher, student, captures, field):
    body = b'{"model": "big-1", "messages": [], "%b": %b}' % (field, DEEP)
    proxy = start()
    route(proxy, request=orjson.loads(body))
    answer = proxy.chat(body)
    assert (answer.status_code, answer.headers["x-stillroom-served-by"]) == (200, "teacher")
    assert teacher.seen[-1].body == body
    assert not student.seen
    assert "stillroom failed on it" in captures(1)[0].fallback
    assert proxy.ready()["engines"] == {student.url: "closed"}


def test_a_key_that_the_teacher_takes_no_longer_is_not_the_students_to_answer(start, route, teacher, student):
    proxy = start()
    route(proxy)
    assert proxy.chat().headers["x-stillroom-served-by"] == "student"
    teacher.reply = json({"error": {"message": "revoked"}}, 401)
    assert proxy.chat(x_stillroom_route="teacher").status_code == 401
    assert proxy.chat().status_code == 401
    assert len(student.seen) == 1


def test_a_student_without_the_long_prompt_is_shown_only_what_varies_and_never_an_unseen_template(
    start, route, teacher, student, captures, db
):
    rules = "Sort the ticket into one of nine departments, in one word. "
    learned = Transform((Piece("system", (rules, "")),))
    request = {"model": "big-1", "metadata": {"task": "t"}, "user": "u"}

    def ask(system: str) -> dict:
        return {**request, "messages": [{"role": "system", "content": system}, {"role": "user", "content": "hello"}]}

    proxy = start()
    with db.begin() as session:
        session.add(Task(id="task_x", name="x"))
        session.add(Dataset(id="d", task_id="task_x", content_hash="", path="", train_rows=1, holdout_rows=1))
        session.flush()
        session.add(Run(id="r", task_id="task_x", dataset_id="d", base_model="b", recipe={}, recipe_hash=""))
        session.flush()
        made = Adapter(id=ADAPTER, task_id="task_x", version=1, run_id="r", base_model="b", path="p", sha256="")
        made.transform = learned.dump()
        session.add(made)
    route(proxy, request=ask(rules))
    assert proxy.chat(ask(f"{rules}Today is Monday.")).headers["x-stillroom-served-by"] == "student"
    shown = [{"role": "system", "content": "Today is Monday."}, {"role": "user", "content": "hello"}]
    assert student.seen[0].json["messages"] == shown
    other = proxy.chat(ask("Sort the letter."))
    assert other.headers["x-stillroom-served-by"] == "teacher"
    assert len(student.seen) == 1
    assert teacher.seen[-1].json == ask("Sort the letter.")
    assert [each.fallback for each in captures(2)] == [None, "student: unseen template"]
    assert set(proxy.ready()["engines"].values()) == {"closed"}
    with db.begin() as session:
        session.get_one(Adapter, ADAPTER).transform = {"version": 99}
    until(lambda: proxy.ready()["routes"] == 0)  # what nobody here can read is not guessed
    assert proxy.chat(ask(rules)).headers["x-stillroom-served-by"] == "teacher"
