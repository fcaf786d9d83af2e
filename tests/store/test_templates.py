"""Prompts that fit, and who they then belong to."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import tasks, templates
from store.columns import now
from store.session import Database
from store.tables import Task, TaskAlias, TaskTemplate
from store.templates import ANY, Directory, Shelf, Template

HEAD, TAIL = "Today is ", ". Sort the ticket by topic."


def template(task_id: str = "task_1", *segments: str, gaps: tuple[int, ...] = (0, 30, 0)) -> Template:
    return Template(task_id, segments or (HEAD, TAIL), gaps)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (f"{HEAD}Monday{TAIL}", True),
        (f"{HEAD}{TAIL}", True),
        (f"{HEAD}{TAIL}{TAIL}", True),  # the first TAIL is in the gap
        (f"{HEAD}{'x' * 30}{TAIL}", True),
        (f"{HEAD}{'x' * 31}{TAIL}", False),
        (f"x{HEAD}Monday{TAIL}", False),
        (f"{HEAD}Monday{TAIL}x", False),
        (f"{TAIL}{HEAD}", False),
        ("", False),
    ],
)
def test_a_text_fits_that_has_the_segments_in_their_order_and_no_more_between_them(text: str, fits: bool) -> None:
    assert template().fits(text) is fits
    assert (Shelf([template()]).find(text) is not None) is fits


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5), st.data())
def test_what_is_made_of_the_segments_fits(segments: list[str], data: st.DataObject) -> None:
    fillings = data.draw(st.lists(st.text(max_size=5), min_size=len(segments) + 1, max_size=len(segments) + 1))
    text = "".join(a + b for a, b in zip(fillings, [*segments, ""], strict=True))
    loose = Template("t", tuple(segments), (ANY,) * (len(segments) + 1))
    assert loose.fits(text)
    assert Shelf([loose]).find(text) == loose


def test_of_two_that_fit_the_one_that_says_more_is_right() -> None:
    wide = template("wide", "Sort the ticket, please", gaps=(0, ANY))
    narrow = template("narrow", "Sort the ticket, please", "in Spanish", gaps=(0, ANY, ANY))
    last = template("last", "and be quick about it", gaps=(ANY, 0))
    shelf = Shelf([wide, narrow, last])
    texts = ["Sort the ticket, please.", "Sort the ticket, please, in Spanish", "x and be quick about it", "x"]
    assert [found.task_id if (found := shelf.find(text)) else None for text in texts] == ["wide", "narrow", "last", None]


def asked(system: str, question: str = "?") -> dict[str, object]:
    return {"model": "big", "messages": [{"role": "system", "content": system}, {"role": "user", "content": question}]}


def test_the_directory_is_read_anew_when_something_changed_and_only_then(db: Database) -> None:
    with db.read() as session:
        first = templates.read(session)
        assert templates.read(session, first) is first
    with db.begin() as session:
        session.add(Task(id="task_1", name="tickets"))
        session.add(TaskAlias(id="task_0", name="old tickets", task_id="task_1", changed_by="me"))
    with db.read() as session:
        second = templates.read(session, first)
        assert templates.read(session, second) is second
    assert (second.aliases, second.called, second.names) == ({"task_0": "task_1"}, {"old tickets": "task_1"}, {"task_1": "tickets"})
    with db.begin() as session:
        task = session.get_one(Task, "task_1")
        task.name, task.steered_at = "triage", now() + timedelta(seconds=1)
    with db.read() as session:
        assert templates.read(session, second).names == {"task_1": "triage"}


def test_a_request_whose_prompt_fits_belongs_to_the_templates_task(db: Database) -> None:
    shape = tasks.identify(asked("x")).shape
    with db.begin() as session:
        session.add(Task(id="task_1", name="tickets"))
        session.add(TaskTemplate(task_id="task_1", scope=shape, segments=[HEAD, TAIL], gaps=[0, 30, 0], changed_by="discovery"))
    with db.read() as session:
        directory = templates.read(session)
    request = asked(f"{HEAD}Monday{TAIL}")
    found = tasks.identify(request, directory=directory)
    assert (found.id, found.name) == ("task_1", "tickets")
    assert tasks.identify({**request, "model": "other"}, directory=directory).id != "task_1"
    own = tasks.identify(request)
    for said in ("tickets", "task_1", own.name, own.id):  # what it was told once it may say again
        assert tasks.identify(request, said, directory=directory) == found
    assert tasks.identify(request, "mine", directory=directory).name == "mine"


def test_the_name_and_the_id_of_a_task_that_was_merged_lead_to_where_it_went() -> None:
    named = tasks.identify({}, "billing")
    directory = Directory(aliases={named.id: "task_1"}, called={"billing": "task_1"}, names={"task_1": "tickets"})
    assert tasks.identify(asked("x"), "billing", directory=directory).id == "task_1"
    assert tasks.identify(asked("x"), named.id, directory=directory).id == "task_1"


def test_a_divided_task_is_divided_by_system_message_or_question_under_whatever_name() -> None:
    named = tasks.identify({}, "tickets")
    shelf = Shelf([Template("task_refunds", ("refund",), (ANY, ANY))])
    directory = Directory(names={"task_refunds": "refunds"}, shelves={named.id: shelf})
    said = [tasks.identify(asked(*each), "tickets", directory=directory).name for each in (("x",), ("x", "a refund!"), ("refund",))]
    assert said == ["tickets", "refunds", "refunds"]
    assert tasks.identify({"model": "m", "prompt": "refund"}, "tickets", "/v1/completions", directory).name == "refunds"
    assert tasks.identify({"model": "m", "input": "refund"}, "tickets", "/v1/responses", directory).name == "refunds"


def test_parts_that_lead_to_each_other_end() -> None:
    shelves = {a: Shelf([Template(b, ("x",), (ANY, ANY))]) for a, b in (("task_a", "task_b"), ("task_b", "task_a"))}
    assert Directory(shelves=shelves).within("task_a", "x", lambda: "x") in ("task_a", "task_b")


@pytest.mark.parametrize(
    ("system", "nothing"),
    [("", True), ("You are a helpful assistant.", True), ("You are a helpful assistant that sorts.", False), ("Sort.", False)],
)
def test_the_system_message_of_any_assistant_says_nothing(system: str, nothing: bool) -> None:
    assert tasks.says_nothing(system) is nothing


def test_a_key_that_a_person_or_discovery_keeps_apart_comes_before_the_template_that_it_fits(db: Database) -> None:
    request = asked(f"{HEAD}Monday{TAIL}")
    keyed = tasks.identify(request)
    with db.begin() as session:
        session.add_all(Task(id=f"task_{n}", name=f"{n}") for n in (1, 2))
        fixed = {"segments": [HEAD, TAIL], "gaps": [0, 30, 0]}
        session.add(TaskTemplate(task_id="task_1", scope=keyed.shape, changed_by="discovery", **fixed))
    for target, by in (("task_2", "ann"), (keyed.id, "discovery")):
        with db.begin() as session:
            session.merge(TaskAlias(id=keyed.id, task_id=target, changed_by=by))
        with db.read() as session:
            directory = templates.read(session)
        assert tasks.identify(request, directory=directory).id == target
        assert tasks.identify(asked(f"{HEAD}Tuesday{TAIL}"), directory=directory).id == "task_1"
