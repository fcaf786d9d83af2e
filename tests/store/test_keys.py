"""Virtual keys: made once, kept as hashes, charged where the capture is written."""

import hashlib
import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlmodel import select

from store import keys, tasks
from store.columns import now
from store.keys import KeyView, LabelTaken
from store.session import Database
from store.states import BudgetPeriod, CaptureStatus, Server
from store.tables import AuditEvent, Capture, VirtualKey

NOVEMBER = datetime(2026, 11, 30, 23, 59, tzinfo=UTC)
DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)


def make(db: Database, label: str = "ci", **rules: object) -> tuple[VirtualKey, str]:
    with db.begin() as session:
        return keys.make(session, label, by="me", **rules)  # type: ignore[arg-type]


def view(db: Database, key: VirtualKey) -> KeyView:
    with db.read() as session:
        return keys.read(session)[bytes.fromhex(key.sha256)]


def spent(db: Database, key: VirtualKey, at: datetime) -> float:
    with db.read() as session:
        return keys.spent(session.get_one(VirtualKey, key.id), at)


def capture(name: str, key: VirtualKey | None, cost_usd: float | None, at: datetime) -> Capture:
    return Capture(
        id=name, created_at=at, task_id="task_1", endpoint="/", status=CaptureStatus.COMPLETE, served_by=Server.TEACHER,
        request=b"", key_id=key.id if key else None, cost_usd=cost_usd,
    )  # fmt: skip


def test_a_key_is_known_by_its_hash_and_kept_nowhere(db: Database) -> None:
    key, secret = make(db)
    assert secret.startswith("sk-stillroom-")
    assert len(secret) == len("sk-stillroom-") + 43  # 32 random bytes in base64
    with db.read() as session:
        found = keys.read(session)
        kept = repr(session.exec(select(VirtualKey)).all()) + repr(session.exec(select(AuditEvent)).all())
    assert list(found) == [hashlib.sha256(secret.encode()).digest()]
    assert secret[: -len(key.last4)] not in kept
    assert key.last4 == secret[-4:]


def test_no_two_keys_are_alike(db: Database) -> None:
    assert len({make(db, f"{n}")[1] for n in range(10)}) == 10


def test_the_proxy_sees_what_was_decided(db: Database) -> None:
    until = datetime(2027, 1, 1, tzinfo=UTC)
    key, _ = make(db, budget_usd=5.0, budget_period=BudgetPeriod.MONTH, requests_per_minute=60, expires_at=until)
    assert view(db, key) == KeyView(key.id, "ci", frozenset(), 5.0, BudgetPeriod.MONTH, 0.0, 60, until.timestamp())


def test_a_task_is_allowed_by_id_or_by_the_name_that_clients_will_give(db: Database) -> None:
    named, keyed = tasks.identify({}, "triage"), tasks.identify({"model": "big"})
    key, _ = make(db, tasks=["triage", keyed.id])
    assert view(db, key).tasks == {named.id, keyed.id}


def test_a_label_is_taken_while_its_key_is_in_use(db: Database) -> None:
    first, _ = make(db)
    other, _ = make(db, "other")
    with pytest.raises(LabelTaken):
        make(db)
    with db.begin() as session:
        with pytest.raises(LabelTaken):
            keys.change(session, session.get_one(VirtualKey, other.id), {"label": "ci"}, by="me")
        keys.revoke(session, session.get_one(VirtualKey, first.id), by="me")
    second, _ = make(db)
    with db.read() as session:
        assert [getattr(keys.find(session, name), "id", None) for name in ("ci", first.id, "nothing", "\0")] == [
            second.id, first.id, None, None,
        ]  # fmt: skip


def test_a_label_without_a_key_in_use_is_the_last_ones(db: Database) -> None:
    for _ in range(2):
        last, _ = make(db)
        with db.begin() as session:
            keys.revoke(session, session.get_one(VirtualKey, last.id), by="me")
    with db.read() as session:
        found = keys.find(session, "ci")
    assert found is not None
    assert found.id == last.id


def test_a_revoked_key_is_not_read_and_its_row_stays(db: Database) -> None:
    key, _ = make(db)
    with db.begin() as session:
        row = session.get_one(VirtualKey, key.id)
        keys.revoke(session, row, by="me")
        at = row.revoked_at
        keys.revoke(session, row, by="me")
    with db.read() as session:
        assert keys.read(session) == {}
        assert session.get_one(VirtualKey, key.id).revoked_at == at


def test_what_people_decide_is_audited(db: Database) -> None:
    key, _ = make(db)
    with db.begin() as session:
        row = session.get_one(VirtualKey, key.id)
        keys.change(session, row, {"budget_usd": 2.0, "expires_at": NOVEMBER}, by="me")
        keys.change(session, row, {"budget_usd": 2.0}, by="me")
        keys.revoke(session, row, by="me")
    with db.read() as session:
        events = session.exec(select(AuditEvent).order_by("id")).all()
    assert [(event.action, event.subject) for event in events] == [
        ("key made", key.id), ("key changed", key.id), ("key revoked", key.id),
    ]  # fmt: skip
    assert (events[1].detail["from"]["budget_usd"], events[1].detail["to"]["budget_usd"]) == (None, 2.0)


def test_a_total_budget_counts_everything_and_a_monthly_one_its_month(db: Database) -> None:
    total, _ = make(db, "total", budget_usd=1.0)
    monthly, _ = make(db, "monthly", budget_usd=1.0, budget_period=BudgetPeriod.MONTH)
    for at, cost in ((NOVEMBER, 0.25), (NOVEMBER, 0.25), (DECEMBER, 0.125), (NOVEMBER, 0.5)):  # the last one comes late
        with db.begin() as session:
            for key in (total, monthly):
                keys.charge(session, key.id, cost, at)
    assert spent(db, total, DECEMBER) == 1.125
    assert spent(db, monthly, DECEMBER) == 0.125
    assert spent(db, monthly, DECEMBER + timedelta(days=40)) == 0


def test_the_proxy_sees_what_this_month_has_cost(db: Database) -> None:
    key, _ = make(db, budget_period=BudgetPeriod.MONTH)
    with db.begin() as session:
        keys.charge(session, key.id, 0.5, now() - timedelta(days=40))
    assert view(db, key).spent_usd == 0
    with db.begin() as session:
        keys.charge(session, key.id, 0.25, now())
    assert view(db, key).spent_usd == 0.25


def test_another_period_begins_with_nothing_spent(db: Database) -> None:
    key, _ = make(db, budget_usd=1.0)
    with db.begin() as session:
        keys.charge(session, key.id, 0.5, NOVEMBER)
    for period, left in ((BudgetPeriod.TOTAL, 0.5), (BudgetPeriod.MONTH, 0.0), (BudgetPeriod.TOTAL, 0.0)):
        with db.begin() as session:
            keys.change(session, session.get_one(VirtualKey, key.id), {"budget_period": period}, by="me")
        assert spent(db, key, NOVEMBER) == left


@pytest.mark.parametrize("cost", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_cost_is_not_charged(db: Database, cost: float) -> None:
    key, _ = make(db)
    with db.begin() as session:
        keys.charge(session, key.id, cost, NOVEMBER)
    assert spent(db, key, NOVEMBER) == 0


def test_captures_are_charged_to_the_keys_they_came_under(db: Database) -> None:
    one, _ = make(db, "one", budget_period=BudgetPeriod.MONTH)
    two, _ = make(db, "two")
    batch = [
        capture("cap_1", one, 0.25, DECEMBER), capture("cap_2", one, 0.5, DECEMBER), capture("cap_3", one, 4.0, NOVEMBER),
        capture("cap_4", two, 1.0, NOVEMBER), capture("cap_5", two, 2.0, DECEMBER),
        capture("cap_6", None, 8.0, DECEMBER), capture("cap_7", one, None, DECEMBER),
    ]  # fmt: skip
    with db.begin() as session:
        session.add_all(batch)
        keys.settle(session, batch)
    assert (spent(db, one, DECEMBER), spent(db, two, DECEMBER)) == (0.75, 3.0)
    with db.read() as session:
        stored = session.get_one(Capture, "cap_2")
    assert (stored.key_id, stored.cost_usd, stored.teacher) == (one.id, 0.5, None)


def test_a_charge_that_is_rolled_back_was_none(db: Database) -> None:
    key, _ = make(db)
    with db.read() as session:  # always rolled back
        keys.charge(session, key.id, 0.5, NOVEMBER)
    assert spent(db, key, NOVEMBER) == 0


def test_drainers_that_charge_the_same_keys_at_once_lose_nothing(db: Database) -> None:
    made = [make(db, f"{n}")[0] for n in range(4)]
    errors: list[Exception] = []

    def drain(number: int) -> None:
        mine = Database(db.engine.url.render_as_string(hide_password=False))
        try:
            for turn in range(10):
                order = made if (number + turn) % 2 else made[::-1]
                with mine.begin() as session:
                    keys.settle(session, [capture("cap", key, 0.5, NOVEMBER) for key in order])
        except Exception as error:  # noqa: BLE001 - the assertion shows it
            errors.append(error)
        finally:
            mine.close()

    threads = [threading.Thread(target=drain, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [spent(db, key, NOVEMBER) for key in made] == [15.0] * 4
