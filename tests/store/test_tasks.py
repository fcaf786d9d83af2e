"""Which task a request belongs to."""

import threading
import time
from typing import Any

import pytest
from sqlmodel import select

from store import tasks
from store.chat import ENDPOINTS, RESPONSES, TEXT
from store.session import Database
from store.tables import Task


def request(**changes: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Triage the ticket."}, {"role": "user", "content": "My card is gone."}]
    return {"model": "big", "messages": messages, **changes}


KNOWN = [  # as they are in the databases of those who use this
    "task_ed7c2ac911c098a1",
    "task_1093e1ab142f8be7",
    "task_d0a3999d77b9aeba",
    "task_91a59c2f9b438197",
    "task_6b2694f2cd3e508d",
    "task_125aeb39076af80f",
]


def nested(depth: int, inmost: Any = None) -> Any:
    value = inmost
    for _ in range(depth):
        value = [value]
    return value


def test_requests_that_differ_in_what_is_asked_are_one_task() -> None:
    other = request(messages=[{"role": "system", "content": "Triage the ticket."}, {"role": "user", "content": "Hello?"}])
    assert tasks.identify(request()) == tasks.identify(other)
    assert tasks.identify(request()) == tasks.identify(request(temperature=0, stream=True, metadata={"user": "7"}))


@pytest.mark.parametrize(
    "change",
    [
        {"model": "bigger"},
        {"messages": [{"role": "system", "content": "Translate."}, {"role": "user", "content": "My card is gone."}]},
        {"tools": [{"type": "function", "function": {"name": "refund"}}]},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_requests_that_differ_in_what_is_fixed_are_two_tasks(change: dict[str, Any]) -> None:
    assert tasks.identify(request()).id != tasks.identify(request(**change)).id


def test_the_order_of_keys_does_not_matter() -> None:
    one = request(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {}}})
    two = request(response_format={"json_schema": {"schema": {}, "name": "x"}, "type": "json_schema"})
    assert tasks.identify(one).id == tasks.identify(two).id


def test_a_system_message_in_parts_is_the_same_as_in_one_string() -> None:
    parts = [{"role": "system", "content": [{"type": "text", "text": "Triage the ticket."}]}, {"role": "user", "content": "?"}]
    assert tasks.identify(request(messages=parts)).id == tasks.identify(request()).id


def test_what_is_nested_deeply_is_told_apart_too() -> None:
    deep = [
        tasks.identify(request(tools=tools, response_format=wanted)).id
        for tools in (
            nested(300),
            nested(301),
            nested(300, ""),
            nested(300, [None, None]),
            nested(300, {"a": 1}),
            nested(300, {"a": "1"}),
        )
        for wanted in (None, {"type": "text"})
    ]
    assert len(set(deep)) == len(deep)
    one, two = ({"b": nested(300), "a": 2}, {"a": 2, "b": nested(300)})
    assert tasks.identify(request(response_format=one)).id == tasks.identify(request(response_format=two)).id


def test_the_name_or_the_id_of_a_keyed_task_names_that_task() -> None:
    keyed = tasks.identify(request())
    assert tasks.identify(request(), keyed.name) == tasks.identify(request(), keyed.id) == keyed
    assert tasks.identify(request(metadata={"task": keyed.name})) == keyed
    assert tasks.identify(request(model="other"), keyed.name).id != keyed.id


def test_an_explicit_name_wins_whatever_the_rest() -> None:
    header = tasks.identify(request(), "triage")
    assert header.name == "triage"
    assert header.id == tasks.identify(request(model="other", messages=[]), "triage").id
    assert header.id == tasks.identify(request(metadata={"task": "triage"})).id


def test_a_header_wins_over_the_body() -> None:
    assert tasks.identify(request(metadata={"task": "body"}), "header").name == "header"


@pytest.mark.parametrize("name", ["-x", " x", "a" * 101, "a\nb", "ä", "x\n", "a;b"])
def test_a_name_that_is_none_is_refused_with_the_rule(name: str) -> None:
    with pytest.raises(tasks.BadTaskName, match="begins with a letter or a digit"):
        tasks.identify(request(), name)


@pytest.mark.parametrize(
    "strange",
    [
        {},
        {"messages": None},
        {"messages": "hi"},
        {"messages": [None, 3, {"role": "system"}, {"role": ["system"]}, {"role": {}}]},
        {"model": 7},
        {"metadata": [1]},
        {"tools": nested(2_000)},
        {"response_format": {"a": nested(300, 1.5), "b": "\ud800"}},
        {"input": [None, 3, {"role": "system"}, {"role": "developer", "type": [], "content": 3}, {"role": {}}]},
        {"input": {"role": "system"}, "instructions": ["x"], "text": {"format": nested(300)}},
        {"prompt": nested(300)},
    ],
)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_strange_body_has_a_task_too(strange: dict[str, Any], endpoint: str) -> None:
    assert tasks.identify(strange, endpoint=endpoint).id.startswith("task_")


def test_the_key_of_a_task_is_what_it_always_was() -> None:
    tools = [{"type": "function", "function": {"name": "refund", "parameters": {"type": "object"}}}]
    known = [
        tasks.identify(request()).id,
        tasks.identify(request(tools=tools)).id,
        tasks.identify(request(tools=tools, response_format={"type": "json_object"})).id,
        tasks.identify(request(messages=[{"role": "system", "content": "long " * 10_000}])).id,
        tasks.identify({}).id,
        tasks.identify(request(), "triage").id,
    ]
    assert known == KNOWN
    assert [tasks.identify(request(tools=tools)).id for _ in range(2)] == [known[1]] * 2


def test_what_is_asked_at_another_endpoint_is_the_same_task() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    asked = request(
        tools=[{"type": "function", "function": {"name": "refund", "description": "d", "parameters": schema, "strict": True}}],
        response_format={"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}},
    )
    responses = {
        "model": "big",
        "instructions": "Triage the ticket.",
        "input": "My card is gone.",
        "tools": [{"type": "function", "strict": True, "name": "refund", "parameters": schema, "description": "d"}],
        "text": {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}},
    }
    assert tasks.identify(responses, endpoint=RESPONSES) == tasks.identify(asked)
    in_input = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Triage the ticket."}]},
        {"role": "user", "content": "?"},
    ]
    assert tasks.identify({"model": "big", "input": in_input}, endpoint=RESPONSES) == tasks.identify(request())
    assert tasks.identify({"model": "big", "prompt": "?"}, endpoint=TEXT) == tasks.identify(request(messages=[]))
    assert tasks.identify({**responses, "metadata": {"task": "triage"}}, endpoint=RESPONSES).name == "triage"


def test_a_task_is_named_after_its_system_message() -> None:
    assert tasks.identify(request()).name.startswith("triage-the-ticket-")


def test_a_task_is_made_once(db: Database) -> None:
    identity = tasks.identify(request())
    for _ in range(2):
        with db.begin() as session:
            tasks.ensure(session, identity)
    with db.read() as session:
        [task] = session.exec(select(Task)).all()
    assert (task.id, task.name, task.teacher_model, task.system) == (identity.id, identity.name, "big", "Triage the ticket.")


def test_a_name_that_is_taken_gets_digits_behind_it(db: Database) -> None:
    with db.begin() as session:
        session.add(Task(id="task_other", name="triage"))
    with db.begin() as session:
        task = tasks.ensure(session, tasks.identify(request(), "triage"))
    assert task.name == f"triage {task.id[-6:]}"


def test_a_name_that_is_taken_with_its_digits_too_gets_the_whole_id_behind_it(db: Database) -> None:
    identity = tasks.identify(request(), "triage")
    with db.begin() as session:
        session.add(Task(id="task_1", name="triage"))
        session.add(Task(id="task_2", name=f"triage {identity.id[-6:]}"))
    with db.begin() as session:
        assert tasks.ensure(session, identity).name == f"triage {identity.id}"
    with db.begin() as session:
        assert tasks.ensure(session, identity).name == f"triage {identity.id}"


def test_a_nul_character_is_left_out_of_a_task_and_finds_none(db: Database) -> None:
    with db.begin() as session:
        tasks.ensure(session, tasks.Identity("task_1", "one", "bi\0g", "be\0have"))
    with db.read() as session:
        task = tasks.find(session, "one")
        assert task is not None
        assert (task.teacher_model, task.system) == ("big", "behave")
        assert tasks.find(session, "on\0e") is None


def test_a_task_is_found_by_id_and_by_name(db: Database) -> None:
    with db.begin() as session:
        session.add(Task(id="task_1", name="triage"))
    with db.read() as session:
        found = [tasks.find(session, key) for key in ("task_1", "triage", "nothing")]
    assert [task.id if task else None for task in found] == ["task_1", "task_1", None]


def test_processes_that_see_a_task_at_the_same_moment_make_it_once(db: Database) -> None:
    identity, errors, together = tasks.identify(request()), [], threading.Barrier(6)

    def first_request() -> None:
        together.wait()
        try:
            with db.begin() as session:
                tasks.ensure(session, identity)
                time.sleep(0.05)  # as long as a batch of captures takes
        except Exception as error:  # noqa: BLE001 - the assertion shows it
            errors.append(error)

    threads = [threading.Thread(target=first_request) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with db.read() as session:
        assert len(session.exec(select(Task)).all()) == 1


def test_two_tasks_that_want_one_name_at_the_same_moment_both_get_one(db: Database) -> None:
    errors: list[Exception] = []
    together = threading.Barrier(2)

    def make(digits: str) -> None:
        together.wait()
        try:
            with db.begin() as session:
                tasks.ensure(session, tasks.Identity(f"task_{digits}", "triage", "big", ""))
                time.sleep(0.1)
        except Exception as error:  # noqa: BLE001 - the assertion shows it
            errors.append(error)

    threads = [threading.Thread(target=make, args=(digits,)) for digits in ("0000000000000001", "0000000000000002")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with db.read() as session:
        assert len(set(session.exec(select(Task.name)).all())) == 2
