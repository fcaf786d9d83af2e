"""The demo: what it makes of what it saw, and how it ends when it cannot go on. The whole of it is in tests/acceptance."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import Result

from admin import demo, home, rig, traffic
from admin.problems import Unavailable
from admin.summary import print_summary, side_by_side
from admin.teachers import tickets
from admin.traffic import Answered, Sent

DRAWN = tickets.draw(0, 4)


def answered(ticket: tickets.Ticket, by: str, ms: float, says: Any = "right") -> Answered:
    return Answered(ticket, by, ms, ticket.answer if says == "right" else says, (100, 20))


def seen(model: str) -> dict[str, Any]:
    """Four tickets; the student answers three: as the teacher did, not so, and with no JSON where the teacher had none either."""
    odd = {**DRAWN[0].answer, "order": "X-0000"}
    said, answers = (odd, "right", None), (odd, odd, None)
    of_teacher = [answered(DRAWN[n], "teacher", 100 * (n + 1), said[n]) for n in range(3)]
    live = [answered(DRAWN[n], "student", ms, answers[n]) for n, ms in enumerate((10, 20, 90))]
    return side_by_side(Sent([*live, answered(DRAWN[3], "teacher", 999)], ["broken"]), Sent(of_teacher), model)


def test_the_student_is_compared_with_the_teachers_answers_to_the_same_tickets() -> None:
    found = seen("gpt-sim")
    assert (found["fresh"], found["student_answered"], found["teacher_answered"], found["compared"]) == (5, 3, 1, 3)
    assert found["agreement_live"] == round(1 / 3, 4)
    assert found["as_labelled"] == {"teacher": 1, "student": 0}
    assert found["p50_ms"] == {"teacher": 200, "student": 20}
    assert "cost_per_1000_requests_usd" not in found  # a simulation has no price


def test_a_price_is_named_with_its_model_and_taken_from_the_apis_usage() -> None:
    assert seen("gpt-4o-mini")["cost_per_1000_requests_usd"] == {"model": "gpt-4o-mini", "teacher": 0.027}


def test_the_summary_is_a_table_without_json_in_its_cells() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    gate = {"gate": {"n": 500, "passed": True}, "failures": [], "skipped": ["6. The teacher is killed"]}
    print_summary(console, {"passed": True, **gate, **seen("gpt-4o-mini")})
    text = console.export_text()
    assert not set(text) & set("{}[]")
    rows = [line.replace("│", " ").split() for line in text.splitlines()]
    assert ["p50", "200", "ms", "20", "ms"] in rows
    assert ["gate:", "n", "500"] in rows
    assert "1,000 requests, by gpt-4o-mini's price" in text


def test_tickets_are_sent_as_a_client_sends_them_and_every_answer_is_kept(tmp_path: Path) -> None:
    teacher = ["simulate", "--latency-ms", "20", "--disagreement", "0"]
    with rig.start(tmp_path / "home", teacher, {}, up=["--without", "distill,serving"]) as started:
        sent = traffic.send(Console(file=io.StringIO()), started, "gpt-sim", 2, DRAWN, "tickets", "teacher")
        polled, swapped = traffic.send_until_student(started, "gpt-sim", DRAWN[:2])
        refused = traffic.send(Console(file=io.StringIO()), started, "gpt-sim", 1, DRAWN[:1], "tickets", "nobody")
    assert {(each.by, each.says == each.ticket.answer) for each in sent.answers} == {("teacher", True)}
    assert (len(sent.answers), sent.failures) == (4, [])
    assert sorted(each.tokens is None for each in sent.answers) == [False, False, True, True]  # every third is streamed
    assert (len(polled.answers), swapped) == (2, None)
    assert len(refused.failures) == 1


def test_a_demo_that_cannot_go_on_writes_what_it_saw(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    with home.lock(folder):  # so that `stillroom up` ends at once
        assert demo.run(demo.Plan(), tmp_path / "summary.json", tmp_path / "models", home=folder) == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["passed"], summary["failed_requests"], summary["failures"], summary["skipped"]) == (False, 0, [], [])
    assert "exit code 1" in summary["error"]


@pytest.mark.parametrize("module", ["torch", "vllm"])
def test_what_is_missing_is_said_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("STILLROOM_STUDENT_URL", "http://127.0.0.1:9")  # the demo does not use it
    with pytest.raises(Unavailable, match=f"(?i)cannot run here. {module} not installed"):
        demo.run(demo.Plan(), tmp_path / "summary.json", tmp_path / "models", home=tmp_path / "home")
    assert list(tmp_path.iterdir()) == []


def test_fewer_requests_than_the_gate_needs_are_refused(stillroom: Callable[..., Result]) -> None:
    refused = stillroom("demo", "--requests", "5")
    assert refused.exit_code == 2
    assert "900" in refused.stderr
