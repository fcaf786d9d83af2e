"""/api/datasets, /verdicts, /rollouts, /routes, /engines, /audit, and /states: rows as they are, and what their states mean."""

from typing import Any

from fastapi import APIRouter

from admin import records
from admin.api.needs import After, Limit, Reads, TaskFilter, task_id
from admin.pages import Page
from store import states

router = APIRouter()


@router.get("/states", tags=["states"], summary="Every state of every table, in a sentence")
def list_states() -> dict[str, dict[str, str]]:
    return glossary()


def glossary() -> dict[str, dict[str, str]]:
    """`{"TaskStatus": {"active": "Captured, trained on and served.", ...}, ...}`"""
    kinds = [each for each in vars(states).values() if isinstance(each, type) and issubclass(each, states.State)]
    return {kind.__name__: {each.value: each.sentence for each in kind} for kind in kinds if kind is not states.State}


def _add(path: str, kind: records.Kind) -> None:
    def list_rows(session: Reads, task: TaskFilter = None, after: After = None, limit: Limit = 50) -> Any:
        return records.listing(session, kind, task_id=task_id(session, task), after=after, limit=limit)

    def list_all(session: Reads, after: After = None, limit: Limit = 50) -> Any:
        return records.listing(session, kind, after=after, limit=limit)

    def get_row(session: Reads, row_id: str) -> Any:
        return records.one(session, kind, row_id)

    table: Any = kind.table
    by_task = path != "engines"
    router.add_api_route(
        f"/{path}",
        list_rows if by_task else list_all,
        response_model=Page[table],
        tags=[path],
        name=f"list_{path}",
        summary=f"List {path}",
    )
    router.add_api_route(
        f"/{path}/{{row_id}}", get_row, response_model=table, tags=[path], name=f"get_{path}", summary=f"One {kind.noun}"
    )


for _plural, _kind in records.KINDS.items():
    _add(_plural, _kind)
