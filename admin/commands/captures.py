"""captures, capture, pairs, pair; approve, reject, correct, tag."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from admin.commands import screen
from admin.commands.groups import command_group
from admin.commands.screen import AfterOption, AsJson, LimitOption, Note, TaskOption
from store.chat import CHAT, as_chat
from store.states import CaptureStatus, PairStatus, Server, Split

app = command_group()
Search = Annotated[str, typer.Option("--search", "-q", help="Text in the last user message or in the answer.")]
ReviewOption = Annotated[
    Literal["approve", "reject", "correct", "tag", "none"] | None,
    typer.Option("--review", help="The last judgement; tag: any tag; none: no judgement yet."),
]
TagOption = Annotated[str | None, typer.Option("--tag", help="A tag that a person put on it.")]
Since = Annotated[str | None, typer.Option("--from", help="Not before this time, ISO 8601.")]
Until = Annotated[str | None, typer.Option("--to", help="Before this time, ISO 8601.")]
Target = Annotated[str, typer.Argument(help="The id of a capture or of a pair.")]


@app.command(rich_help_panel="Look")
def captures(
    task: TaskOption = None,
    status: CaptureStatus | None = None,
    served_by: Server | None = None,
    since: Since = None,
    until: Until = None,
    search: Search = "",
    review: ReviewOption = None,
    tag: TagOption = None,
    after: AfterOption = None,
    limit: LimitOption = 20,
    as_json: AsJson = False,
) -> None:
    """What was asked and answered, newest first."""
    from admin import captures, tasks

    with screen.reading() as session:
        task_id = tasks.find(session, task).id if task else None
        times = screen.time_of(since), screen.time_of(until)
        wanted = captures.Filter(task_id, status, served_by, *times, search, review, tag)
        page = captures.listing(session, wanted, after=after, limit=limit)
    if as_json:
        screen.emit(page)
        return
    rows = (
        [c.id, c.created_at, c.task, c.served_by, c.status, c.review, screen.line(c.prompt), screen.line(c.answer, 40)]
        for c in page.data
    )
    screen.table(
        ["id", "time", "task", "by", "status", "review", "prompt", "answer"],
        rows,
        none="No captures. Point a client at the proxy, or import recorded exchanges with `stillroom import FILE`.",
        more=page.data[-1].id if page.has_more else None,
    )


@app.command(rich_help_panel="Look")
def capture(target: Target, as_json: AsJson = False) -> None:
    """One capture, with the teacher's and the student's answer."""
    from admin import captures

    with screen.reading() as session:
        found = captures.one(session, target)
    if as_json:
        screen.emit(found)
        return
    hidden = {"request", "response", "reviews", "teacher", "student", "pair", "task_id", "prompt", "answer"}
    screen.fields(
        {
            **{name: value for name, value in found if name not in hidden},
            "what that means": found.status.sentence,
            "pair": f"{found.pair.id} ({found.pair.split or found.pair.reason})" if found.pair else None,
            "messages": _messages(found.request, found.endpoint),
            **_answers(found.teacher, found.student),
            "reviews": _reviews(found.reviews),
        }
    )


@app.command(rich_help_panel="Look")
def pairs(
    task: TaskOption = None,
    status: PairStatus | None = None,
    split: Split | None = None,
    since: Since = None,
    until: Until = None,
    search: Search = "",
    review: ReviewOption = None,
    tag: TagOption = None,
    after: AfterOption = None,
    limit: LimitOption = 20,
    as_json: AsJson = False,
) -> None:
    """What can be learned from, newest first."""
    from admin import pairs, tasks

    with screen.reading() as session:
        task_id = tasks.find(session, task).id if task else None
        times = screen.time_of(since), screen.time_of(until)
        page = pairs.listing(session, pairs.Filter(task_id, status, split, *times, search, review, tag), after=after, limit=limit)
    if as_json:
        screen.emit(page)
        return
    rows = (
        [p.id, p.task, p.status, p.left_out or p.split or p.reason, p.review, screen.line(p.prompt), screen.line(p.answer, 40)]
        for p in page.data
    )
    screen.table(
        ["id", "task", "status", "split", "review", "prompt", "answer"],
        rows,
        none="No pairs. They are made of captures by `stillroom distill`, a few seconds after they come in.",
        more=page.data[-1].id if page.has_more else None,
    )


@app.command(rich_help_panel="Look")
def pair(pair_id: Annotated[str, typer.Argument(help="Its id.")], as_json: AsJson = False) -> None:
    """One pair, with the teacher's and the student's answer."""
    from admin import pairs

    with screen.reading() as session:
        found = pairs.one(session, pair_id)
    if as_json:
        screen.emit(found)
        return
    screen.fields(
        {
            **{name: getattr(found, name) for name in ("id", "created_at", "task", "capture_id", "status", "reason", "split")},
            "not in the latest dataset": found.left_out,
            "cluster": found.cluster,
            "values replaced": found.redacted or None,
            "what that means": found.split.sentence if found.split else found.status.sentence,
            "messages": _messages({"messages": found.messages}),
            "tools": found.tools,
            **_answers(found.teacher, found.student),
            "correction": found.correction,
            "reviews": _reviews(found.reviews),
        }
    )


@app.command(rich_help_panel="Review")
def approve(target: Target, note: Note = "", as_json: AsJson = False) -> None:
    """The answer is right."""
    _review("approve", target, note, as_json)


@app.command(rich_help_panel="Review")
def reject(target: Target, note: Note = "", as_json: AsJson = False) -> None:
    """The answer is wrong: it is not trained on."""
    _review("reject", target, note, as_json)


@app.command(rich_help_panel="Review")
def correct(
    target: Target,
    answer: Annotated[str | None, typer.Argument(help="What the answer should have been.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Read it from a file; - is stdin.")] = None,
    message: Annotated[str | None, typer.Option("--message", help="A whole assistant message as JSON, for tool calls.")] = None,
    note: Note = "",
    as_json: AsJson = False,
) -> None:
    """Give the answer that should have been; it is trained on instead."""
    import orjson

    from admin.problems import Invalid

    given: Any = answer
    if file is not None:
        try:
            given = (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode()
        except UnicodeDecodeError as error:
            raise Invalid(f"{file} is not UTF-8: {error}", "bad_correction") from error
    elif message is not None:
        try:
            given = orjson.loads(message)
        except orjson.JSONDecodeError as error:
            raise Invalid(f"--message is no JSON: {error}", "bad_correction") from error
    if not isinstance(given, str | dict):
        raise Invalid("Give the answer, or --file, or --message with an assistant message.", "bad_correction")
    _review("correct", target, note, as_json, answer=given)


@app.command(rich_help_panel="Review")
def tag(target: Target, tags: list[str], note: Note = "", as_json: AsJson = False) -> None:
    """Put labels on it."""
    _review("tag", target, note, as_json, tags=tags)


def _review(verb: str, target: str, note: str, as_json: bool, **more: Any) -> None:
    from admin import reviews

    with screen.writing() as session:
        review = getattr(reviews, verb)(session, target, by=screen.person(), note=note, **more)
    found = reviews.ReviewLine.model_validate(review)
    if as_json:
        screen.emit(found)
        return
    typer.echo(f"{found.capture_id}: {found.kind}. {found.kind.sentence}")


def _messages(request: Any, endpoint: str = CHAT) -> str:
    messages = as_chat(endpoint, request).get("messages") if isinstance(request, dict) else None
    if not isinstance(messages, list):
        return screen.text(request)
    return "\n".join(f"[{m.get('role')}] {screen.text(m.get('content') or m.get('tool_calls'))}" for m in messages)


def _answers(teacher: Any, student: Any) -> dict[str, str]:
    from store.answers import text_of

    def said(answer: Any) -> str:
        if answer is None:
            return ""
        return text_of(answer.message) if answer.message else f"no answer: {answer.error}"

    agrees = {True: ", agrees", False: ", does not agree"}.get(student.agrees, "") if student else ""
    source = f"student ({'live' if student.live else 'evaluation'}{agrees})" if student else "student"
    return {"teacher": said(teacher), source: said(student)}


def _reviews(history: Any) -> str:
    shown = []
    for each in history:
        what = screen.text(each.correction or each.tags or "")
        shown.append(" ".join(filter(None, [screen.text(each.created_at), each.reviewer, each.kind.value, what, each.note])))
    return "\n".join(shown)
