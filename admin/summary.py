"""What the demo saw, in numbers: teacher and student side by side on the same tickets, and as tables for people."""

import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

from admin.traffic import Sent
from store.states import Server

# Dollars for a million tokens, asked and answered: OpenAI's list prices of 2025. Other models' costs are not shown.
PRICES = {"gpt-4o": (2.50, 10.00), "gpt-4o-mini": (0.15, 0.60)}


def side_by_side(live: Sent, of_teacher: Sent, model: str) -> dict[str, Any]:
    """Teacher and student on the same tickets, asked equally many at a time.

    live: sent as a client does; its answers of the student count. of_teacher: the teacher's. `agreement_live` is the share of the
    student's answers whose five fields are the teacher's for the same ticket; `as_labelled` counts those that are the ticket's
    own. What a thousand requests cost only where the model's price is known.
    """
    student, teacher = live.of(Server.STUDENT), of_teacher.of(Server.TEACHER)
    said = {each.ticket.text: each.says for each in teacher}
    both = [each for each in student if each.ticket.text in said]
    agreed = sum(each.says is not None and each.says == said[each.ticket.text] for each in both)
    found: dict[str, Any] = {
        "fresh": len(live.answers) + len(live.failures),
        "student_answered": len(student),
        "teacher_answered": len(live.of(Server.TEACHER)),
        "compared": len(both),
        "agreement_live": round(agreed / max(1, len(both)), 4),
    }
    sides = {"teacher": teacher, "student": student}
    found["as_labelled"] = {name: sum(each.says == each.ticket.answer for each in side) for name, side in sides.items()}
    found["asked"] = {name: len(side) for name, side in sides.items()}
    found["p50_ms"] = {
        name: round(statistics.median(each.milliseconds for each in side), 1) if side else None for name, side in sides.items()
    }
    tokens = [each.tokens for each in teacher if each.tokens is not None]
    if model in PRICES and tokens:
        price_in, price_out = PRICES[model]
        cost = statistics.mean(asked * price_in + answered * price_out for asked, answered in tokens) / 1e6 * 1000
        found["cost_per_1000_requests_usd"] = {"model": model, "teacher": round(cost, 4)}
    return found


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Two tables: teacher and student side by side, if it came to that; then every other number."""
    if "agreement_live" in summary:
        console.print(_comparison(summary))
    table = Table(title="What was seen" if summary["passed"] else "What was seen before it stopped", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for key, value in summary.items():
        if isinstance(value, dict):
            for name, number in value.items():
                table.add_row(f"{key}: {name}".replace("_", " "), str(number))
        else:
            table.add_row(key.replace("_", " "), "\n".join(value) if isinstance(value, list) else str(value))
    console.print(table)


def _comparison(summary: dict[str, Any]) -> Table:
    table = Table(title=f"The same {summary['fresh']} fresh tickets")
    table.add_column()
    for name in ("teacher", "student"):
        table.add_column(name, justify="right")
    asked, right, p50 = summary["asked"], summary["as_labelled"], summary["p50_ms"]
    table.add_row("answered", str(asked["teacher"]), str(asked["student"]))
    table.add_row("p50", *(f"{p50[name]:.0f} ms" if p50[name] else "" for name in ("teacher", "student")))
    table.add_row("as the teacher answers", "", f"{summary['agreement_live']:.1%} of {summary['compared']}")
    table.add_row("as the ticket is meant", *(f"{right[name]} of {asked[name]}" for name in ("teacher", "student")))
    if cost := summary.get("cost_per_1000_requests_usd"):
        table.add_row(f"1,000 requests, by {cost['model']}'s price", f"${cost['teacher']:.3f}", "your machine's")
    return table
