from collections.abc import Callable
from pathlib import Path

import pytest

from serving import reconcile, rollout
from serving.reconcile import Need, Outcome, Plan, Reconciler
from serving.settings import ServingSettings
from serving.vllm import StudentDown, StudentServer
from store import routes
from store.session import Database
from store.states import AdapterStatus
from store.tables import Adapter, Rollout
from tests.serving.conftest import behave, calls, engine_row

Make = Callable[..., str]


@pytest.fixture
def reconciler(settings: ServingSettings) -> Reconciler:
    return Reconciler(settings, grace=0.0)


def plan_of(db: Database, settings: ServingSettings) -> Plan:
    with db.read() as session:
        return reconcile.read(session, settings)


@pytest.fixture
def one_pass(db: Database, settings: ServingSettings, server: StudentServer, base: Path) -> Callable[[Reconciler], Outcome]:
    return lambda reconciler: reconciler.step(server, base, plan_of(db, settings))


def point(db: Database, adapter_id: str | None) -> None:
    with db.begin() as session:
        routes.point(session, "task_1", adapter_id, by="test", why="")


def loads(server: StudentServer) -> list[list[str]]:
    return [call for call in calls(server) if call[0] != "complete"]


def test_the_plan_is_routes_staged_rollouts_and_new_candidates(db: Database, settings: ServingSettings, make_adapter: Make) -> None:
    live, staged, new, refused, old = (make_adapter(version=number) for number in range(1, 6))
    engine_row(db, live, staged)
    with db.begin() as session:
        rollout.promote(session, live, by="x", why="")
        session.add(Rollout(task_id="task_1", adapter_id=staged))
        rollout.refuse(session, refused, "bad")
        session.get_one(Adapter, old).status = AdapterStatus.REFUSED  # by distill, before anybody loaded it
    plan = plan_of(db, settings)
    assert {each.id: each.need for each in plan.wanted} == {live: Need.LIVE, staged: Need.STAGED, new: Need.NEW}
    assert plan.known == {live, staged, new, refused, old}


def test_what_is_missing_is_loaded_once_and_what_is_there_left_alone(
    server: StudentServer, make_adapter: Make, reconciler: Reconciler, one_pass: Callable[[Reconciler], Outcome]
) -> None:
    name = make_adapter()
    for _ in range(3):
        assert one_pass(reconciler) == Outcome(loaded=(name,))
    assert loads(server) == [["load", name]]


def test_an_adapter_is_unloaded_only_after_a_grace(
    db: Database,
    settings: ServingSettings,
    server: StudentServer,
    make_adapter: Make,
    one_pass: Callable[[Reconciler], Outcome],
) -> None:
    name = make_adapter()
    point(db, name)
    patient = Reconciler(settings, grace=3600.0)
    one_pass(patient)
    with db.begin() as session:
        session.get_one(Adapter, name).status = AdapterStatus.ACCEPTED
    point(db, None)
    assert one_pass(patient).loaded == (name,)  # a request under way may still need it
    point(db, name)
    one_pass(patient)
    point(db, None)
    hasty = Reconciler(settings, grace=0.0)
    assert one_pass(hasty).loaded == ()
    assert loads(server) == [["load", name], ["unload", name]]
    assert server.models() == ["base"]


def test_a_servers_other_models_are_never_unloaded(
    server: StudentServer, tmp_path: Path, reconciler: Reconciler, one_pass: Callable[[Reconciler], Outcome]
) -> None:
    server.load("somebody-elses", str(tmp_path))
    assert one_pass(reconciler).loaded == ()
    assert server.models() == ["base", "somebody-elses"]


def test_a_bad_folder_is_refused_without_vllm_seeing_it_and_the_others_are_loaded(
    server: StudentServer, settings: ServingSettings, make_adapter: Make, reconciler: Reconciler,
    one_pass: Callable[[Reconciler], Outcome],
) -> None:  # fmt: skip
    bad, other_base, good = make_adapter(version=1), make_adapter(version=2, base_model="another"), make_adapter(version=3)
    (settings.artifacts / "task_1" / "v1" / "adapter_model.bin").touch()
    outcome = one_pass(reconciler)
    assert outcome.loaded == (good,)
    assert "adapter_model.bin" in outcome.refused[bad]
    assert "'another'" in outcome.refused[other_base]
    assert loads(server) == [["load", good]]


def test_a_refusal_by_vllm_is_the_adapters_fault_only_if_vllm_is_well(
    server: StudentServer, make_adapter: Make, reconciler: Reconciler, one_pass: Callable[[Reconciler], Outcome]
) -> None:
    name = make_adapter()
    behave(server, dead=True)
    assert one_pass(reconciler) == Outcome(loaded=(), complete=False)
    behave(server, dead=False, refuse="LoRA rank 64 is greater")
    assert "LoRA rank 64 is greater" in one_pass(reconciler).refused[name]
    behave(server, refuse=None)
    assert one_pass(reconciler).refused  # not tried again at once
    reconciler.again = 0.0
    assert one_pass(reconciler) == Outcome(loaded=(name,))


def test_what_cannot_be_read_now_is_no_refusal_and_is_loaded_later(
    server: StudentServer, base: Path, make_adapter: Make, reconciler: Reconciler, one_pass: Callable[[Reconciler], Outcome]
) -> None:
    name = make_adapter()
    weights = base / "model.safetensors"
    weights.rename(base / "away")
    weights.symlink_to(base / "nowhere")
    for _ in range(2):
        outcome = one_pass(reconciler)
        assert (outcome.refused, outcome.complete, list(outcome.unread)) == ({}, True, [name])
    weights.unlink()
    (base / "away").rename(weights)
    reconciler.again = 0.0
    assert one_pass(reconciler) == Outcome(loaded=(name,))
    assert loads(server) == [["load", name]]


def test_what_is_asked_for_again_is_tried_at_once(
    db: Database, server: StudentServer, make_adapter: Make, reconciler: Reconciler, one_pass: Callable[[Reconciler], Outcome]
) -> None:
    name = make_adapter()
    behave(server, refuse="LoRA rank 64 is greater")
    why = one_pass(reconciler).refused[name]
    with db.begin() as session:
        rollout.refuse(session, name, why)
    assert one_pass(reconciler) == Outcome(loaded=())
    behave(server, refuse=None)
    with db.begin() as session:
        rollout.request_promotion(session, name, by="ada", why="it is set higher")
    assert one_pass(reconciler) == Outcome(loaded=(name,))


def test_a_server_that_is_gone_raises(settings: ServingSettings, base: Path, reconciler: Reconciler) -> None:
    with StudentServer("http://127.0.0.1:1") as gone, pytest.raises(StudentDown):
        reconciler.step(gone, base, Plan())
