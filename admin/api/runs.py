"""/api/runs, /tasks/{task}/pareto and /curve, /evaluations, /adapters: what came of the pairs; promote an adapter."""

from fastapi import APIRouter
from fastapi.responses import FileResponse

from admin import adapters, runs, searches
from admin.api.lineage import Settings
from admin.api.needs import After, Caller, Limit, Reads, TaskFilter, Writes, task_id
from admin.api.tasks import Promote, Why
from admin.pages import Page
from store.states import AdapterStatus, RunPurpose, RunStatus

router = APIRouter()


@router.get("/runs", tags=["runs"], summary="List trainings, with their progress")
def list_runs(
    session: Reads,
    task: TaskFilter = None,
    status: RunStatus | None = None,
    purpose: RunPurpose | None = None,
    after: After = None,
    limit: Limit = 50,
) -> Page[runs.RunLine]:
    return runs.listing(session, task_id=task_id(session, task), status=status, purpose=purpose, after=after, limit=limit)


@router.get("/runs/{run_id}", tags=["runs"], summary="One training, with its loss curve")
def get_run(session: Reads, settings: Settings, run_id: str) -> runs.RunDetail:
    return runs.one(session, run_id, settings)


@router.post("/runs/{run_id}/epochs/{epoch}", tags=["decisions"], summary="Have the adapter of one of its epochs judged")
def take_epoch(
    session: Writes, settings: Settings, by: Caller, run_id: str, epoch: int, body: Why | None = None
) -> adapters.AdapterLine:
    return runs.take_epoch(session, run_id, epoch, settings, by=by, why=(body or Why()).why)


@router.get("/tasks/{task}/pareto", tags=["runs"], summary="Its latest search: quality against cost and latency")
def get_pareto(session: Reads, task: str) -> searches.SearchDetail:
    return searches.pareto(session, task)


@router.get(
    "/tasks/{task}/pareto.png", tags=["runs"], summary="The same as a plot", response_class=FileResponse,
    responses={200: {"content": {"image/png": {}}}},
)  # fmt: skip
def get_plot(session: Reads, settings: Settings, task: str) -> FileResponse:
    return FileResponse(searches.plot(session, task, settings), media_type="image/png")


@router.get("/tasks/{task}/curve", tags=["runs"], summary="Its learning curve, and whether more data will do")
def get_curve(session: Reads, task: str) -> searches.LearningCurveDetail:
    return searches.curve(session, task)


@router.get("/evaluations", tags=["evaluations"], summary="List evaluations")
def list_evaluations(session: Reads, task: TaskFilter = None, after: After = None, limit: Limit = 50) -> Page[runs.EvaluationLine]:
    return runs.evaluations(session, task_id=task_id(session, task), after=after, limit=limit)


@router.get("/evaluations/{evaluation_id}", tags=["evaluations"], summary="One evaluation")
def get_evaluation(session: Reads, evaluation_id: str) -> runs.EvaluationLine:
    return runs.evaluation(session, evaluation_id)


@router.get("/evaluations/{evaluation_id}/items", tags=["evaluations"], summary="Its items, disagreements first")
def list_items(session: Reads, evaluation_id: str, after: After = None, limit: Limit = 50) -> Page[runs.Item]:
    return runs.items(session, evaluation_id, after=after, limit=limit)


@router.get("/adapters", tags=["adapters"], summary="List adapters")
def list_adapters(
    session: Reads, task: TaskFilter = None, status: AdapterStatus | None = None, after: After = None, limit: Limit = 50
) -> Page[adapters.AdapterLine]:
    return adapters.listing(session, task_id=task_id(session, task), status=status, after=after, limit=limit)


@router.get("/adapters/{adapter_id}", tags=["adapters"], summary="One adapter")
def get_adapter(session: Reads, adapter_id: str) -> adapters.AdapterLine:
    return adapters.one(session, adapter_id)


@router.post("/adapters/{adapter_id}/promote", tags=["decisions"], summary="Let it answer, against or without the gate's word")
def promote(session: Writes, by: Caller, adapter_id: str, body: Promote | None = None) -> adapters.Promotion:
    body = body or Promote()
    return adapters.promote(session, adapters.one(session, adapter_id).id, by=by, why=body.why, holdback=body.holdback)
