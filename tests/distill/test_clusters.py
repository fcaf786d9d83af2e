"""Near-duplicates and conversations stay on one side of the split, whatever comes in whatever order."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
import sqlalchemy as sa
from sqlmodel import select

from distill import clusters, datasets, pairs
from distill.clusters import Clusters, side
from distill.settings import DistillSettings
from store import migrate, moves, tasks
from store.policy import Policy
from store.session import Database
from store.states import PairStatus, Split
from store.tables import Capture, Clustering, Dataset, DatasetPair, Pair, PairSketch, Task
from tests.distill.conftest import exchange
from tests.distill.test_sketches import jaccard, prose

POLICY = Policy()


def told(prompt: str, answer: str, number: int, **changes: object) -> Capture:
    """The capture that came as number so-and-so."""
    return exchange(prompt, answer, id=f"cap_{number:026x}", **changes)


def made(db: Database, task: str, limit: int = 500) -> list[Pair]:
    """All pairs of the task, once there is nothing left to look at, by capture. Each batch in a process of its own, as it were."""
    while True:
        with db.begin() as session:
            if not pairs.extract(session, task, POLICY, limit=limit):
                return list(session.exec(select(Pair).order_by(Pair.capture_id)).all())


@pytest.mark.parametrize("policy", [Policy(), Policy(holdout=0.33, validation=0.07), Policy(holdout=0.9, validation=0.5)])
def test_shares_of_the_split_are_the_policys_and_what_is_held_out_is_the_end_of_each_window(policy: Policy) -> None:
    sides = [side(number, policy) for number in range(1000, 3000)]
    shares = {split: count / len(sides) for split, count in Counter(sides).items()}
    assert shares[Split.HOLDOUT] == pytest.approx(policy.holdout, abs=0.001)
    assert shares[Split.VALIDATION] == pytest.approx(min(policy.validation, (1 - policy.holdout) / 2), abs=0.001)
    order = [Split.TRAIN, Split.VALIDATION, Split.HOLDOUT]
    for start in range(0, len(sides), clusters.WINDOW):
        window = [order.index(each) for each in sides[start : start + clusters.WINDOW]]
        assert window == sorted(window)


def test_a_small_task_has_no_validation_rows() -> None:
    assert Counter(side(number, POLICY) for number in range(100)) == {Split.TRAIN: 80, Split.HOLDOUT: 20}


def edited(rng: random.Random, text: str) -> str:
    """A near-duplicate: letters changed, put in and left out, at a Jaccard of 0.8 or more."""
    found = text
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(found))
        further = found[:at] + rng.choice(["", "x", " please ", "Q"]) + found[at + rng.randrange(3) :]
        if jaccard(text, further) >= 0.8:
            found = further
    return found


@pytest.mark.parametrize("where", ["system", "user", "nowhere"])
@pytest.mark.parametrize("seed", range(3))
def test_planted_near_duplicates_never_straddle_the_split(db: Database, where: str, seed: int) -> None:
    rng = random.Random(f"{where} {seed}")
    fixed = prose(rng, 150)
    planted: dict[str, int] = {}
    groups = [prose(rng, rng.randint(8, 60)) for _ in range(50)]
    texts = [(number, edited(rng, base)) for number, base in enumerate(groups) for _ in range(rng.randint(1, 7))]
    rng.shuffle(texts)
    rows = []
    for number, text in texts:
        system, user = {"system": (fixed, text), "user": ("", f"{fixed}\nQuestion: {text}\nAnswer:"), "nowhere": ("", text)}[where]
        messages = [{"role": "system", "content": system}] if system else []
        asked = {"messages": [*messages, {"role": "user", "content": user}]}
        capture = told("", f"answer {len(rows)}", len(rows), request=asked)
        rows.append(capture)
        capture.task_id = rows[0].task_id
        planted[capture.id] = number
    with db.begin() as session:
        tasks.ensure(session, tasks.identify(orjson.loads(rows[0].request)))
        session.add_all(rows)
    found = made(db, rows[0].task_id, limit=rng.choice([7, 60, 500]))
    sides, of_cluster = defaultdict(set), defaultdict(set)
    for pair in found:
        if pair.status == PairStatus.READY:
            sides[planted[pair.capture_id]].add(pair.split)
            of_cluster[pair.cluster].add(planted[pair.capture_id])
    assert [number for number, split in sides.items() if len(split) > 1] == []
    assert sum(pair.status == PairStatus.READY for pair in found) >= 0.9 * len(found)
    assert sum(len(each) == 1 for each in of_cluster.values()) >= 0.9 * len(of_cluster)  # and nothing else is thrown together


def test_two_clusters_on_one_side_become_one_and_on_two_sides_the_later_pair_is_left_out(
    db: Database, put: Callable[..., str]
) -> None:
    rng = random.Random(5)
    rows = [told(prose(rng, 30), "ok", n, meta={"conversation": f"c-{n}"}) for n in range(18)]
    one, two, three = rows[0], rows[1], rows[17]
    put(*rows)
    found = {pair.capture_id: pair for pair in made(db, one.task_id)}
    assert [found[each.id].split for each in (one, two, three)] == [Split.TRAIN, Split.TRAIN, Split.HOLDOUT]

    def text(capture: Capture) -> str:
        return str(orjson.loads(capture.request)["messages"][1]["content"])

    joins, straddles = (told(f"{text(c)}!", "ok!", n, meta={"conversation": "c-1"}) for n, c in ((20, one), (21, three)))
    put(joins)
    put(straddles)
    found = {pair.capture_id: pair for pair in made(db, one.task_id)}
    assert found[one.id].cluster == found[two.id].cluster == found[joins.id].cluster
    assert (found[straddles.id].status, found[straddles.id].split) == (PairStatus.EXCLUDED, None)
    assert found[straddles.id].reason == clusters.CONVERSATION_STRADDLES


def test_the_same_pairs_are_placed_alike_one_by_one_and_all_at_once(db: Database, put: Callable[..., str]) -> None:
    rng = random.Random(6)
    rows = [told(edited(rng, base), f"answer {n}", n) for n, base in enumerate([prose(rng, 20) for _ in range(40)] * 2)]
    task = put(*rows)
    held = Clusters(task)
    with db.begin() as session:
        while pairs.extract(session, task, POLICY, limit=9, clusters=held):
            pass
        kept = {pair.capture_id: (pair.cluster, pair.split) for pair in session.exec(select(Pair))}
        session.execute(sa.delete(PairSketch))
        session.execute(sa.delete(Clustering))
        session.execute(sa.delete(Pair))
    again = {pair.capture_id: pair for pair in made(db, task, limit=9)}
    assert {key: split for key, (_, split) in kept.items()} == {key: pair.split for key, pair in again.items()}
    firsts = {pair.id: pair.capture_id for pair in again.values()}
    by_first = {key: firsts.get(pair.cluster) for key, pair in again.items()}
    assert len(set(by_first.values())) == len({cluster for cluster, _ in kept.values()})


def test_pairs_of_before_there_were_clusters_get_one_and_the_later_of_two_that_straddle_is_left_out(
    db: Database, put: Callable[..., str]
) -> None:
    rng = random.Random(7)
    texts = [prose(rng, 30) for _ in range(40)]
    rows = [told(text, "ok", n) for n, text in enumerate([*texts, *(f"{text}!" for text in texts)])]
    task = put(*rows)
    first = made(db, task)
    assert {pair.status for pair in first} == {PairStatus.READY}
    with db.begin() as session:  # as the migration leaves them: by conversation, and some on the other side
        session.execute(sa.delete(PairSketch))
        session.execute(sa.delete(Clustering))
        for pair in session.exec(select(Pair)):
            pair.cluster = pair.conversation
        moved = {pair.capture_id for pair in first[40:50] if pair.split == Split.TRAIN}
        for pair in session.exec(select(Pair).where(Pair.capture_id.in_(moved))):  # type: ignore[attr-defined]
            pair.split = Split.HOLDOUT
    found = {pair.capture_id: pair for pair in made(db, task, limit=30)}
    assert {key for key, pair in found.items() if pair.status == PairStatus.EXCLUDED} == moved
    assert {pair.reason for pair in found.values()} == {"", clusters.CONVERSATION_STRADDLES}
    for one, other in zip(rows[:40], rows[40:], strict=True):
        if other.id not in moved:
            assert found[one.id].cluster == found[other.id].cluster
    with db.begin() as session:
        assert pairs.extract(session, task, POLICY) == 0


def test_what_one_user_sends_again_and_again_is_no_template(db: Database) -> None:
    """Else its near-duplicates would be told apart by what is left of them, and be on all sides of the split."""
    rng = random.Random(9)
    flood, fixed = prose(rng, 40), prose(rng, 60)
    rows = []
    for number in range(1200):
        loud = number % 4 != 0
        said = f"{flood} {number}" if loud else prose(rng, 40)
        asked = {"messages": [{"role": "user", "content": f"{fixed}\n{said}"}], "user": "loud" if loud else f"user {number % 80}"}
        rows.append(told("", f"answer {number}", number, request=asked))
        rows[-1].task_id = rows[0].task_id
    with db.begin() as session:
        tasks.ensure(session, tasks.identify(orjson.loads(rows[0].request)))
        session.add_all(rows)
    ready = [pair for pair in made(db, rows[0].task_id) if pair.status == PairStatus.READY]
    assert len({pair.split for pair in ready if flood in str(pair.messages)}) == 1
    assert len({pair.cluster for pair in ready if flood not in str(pair.messages)}) > 250


def test_clusters_that_are_kept_notice_what_others_changed(db: Database, put: Callable[..., str]) -> None:
    rng = random.Random(10)
    texts = [prose(rng, 30) for _ in range(60)]
    one = put(*(told(text, "ok", n) for n, text in enumerate(texts[:40])))
    held = Clusters(one)
    with db.begin() as session:
        assert pairs.extract(session, one, POLICY, clusters=held) == 40
        assert len(held) == 40
    other = put(*(told(text, "ok", 40 + n, request={"model": "other"}) for n, text in enumerate(texts[40:])))
    assert other != one
    made(db, other)
    with db.begin() as session:
        session.add(Dataset(id="ds", task_id=other, content_hash="x", path="x", train_rows=1, holdout_rows=1))
        session.flush()
        session.add_all(DatasetPair(dataset_id="ds", pair_id=each.id) for each in session.exec(select(Pair)))
    with db.begin() as session:
        moves.merge(session, session.get_one(Task, one), [session.get_one(Task, other)], by="tests")
    put(*(told(f"{text}!", "ok!", 60 + n) for n, text in enumerate(texts)))
    with db.begin() as session:
        while pairs.extract(session, one, POLICY, clusters=held):
            pass
        assert len(held) == 120
        assert session.get_one(Clustering, one).version != clusters.BEHIND
        assert len({pair.cluster for pair in session.exec(select(Pair))}) == 60


def test_sketches_of_another_version_are_made_anew(db: Database, put: Callable[..., str]) -> None:
    rng = random.Random(8)
    task = put(*(told(prose(rng, 30), "ok", n) for n in range(40)))
    before = made(db, task)
    with db.begin() as session:
        session.get_one(Clustering, task).version = 1
        session.execute(sa.update(PairSketch).values(sketch=b"\0" * 512))
    with db.begin() as session:
        assert pairs.extract(session, task, POLICY) == 40
        assert len({each.sketch for each in session.exec(select(PairSketch))}) == 40
    assert [(pair.cluster, pair.split) for pair in made(db, task)] == [(pair.cluster, pair.split) for pair in before]


def test_an_erased_pair_leaves_no_sketch(db: Database, put: Callable[..., str]) -> None:
    task = put(*(exchange(str(n), "ok") for n in range(3)))
    gone = made(db, task)[0].id
    with db.begin() as session:
        session.execute(sa.delete(Pair).where(Pair.id == gone))  # type: ignore[arg-type]
    with db.read() as session:
        assert gone not in set(session.exec(select(PairSketch.pair_id)))


def test_pairs_of_tasks_that_were_merged_do_not_straddle_either(db: Database, put: Callable[..., str]) -> None:
    rng = random.Random(9)
    texts = [prose(rng, 30) for _ in range(40)]
    one = put(*(told(text, "ok", n) for n, text in enumerate(texts)))
    system = {"role": "system", "content": "Another."}
    other = put(
        *(
            told("", "ok!", 100 + n, request={"messages": [system, {"role": "user", "content": f"{text}!"}]})
            for n, text in enumerate(reversed(texts))
        )
    )
    assert one != other
    for task in (one, other):
        made(db, task)
    with db.begin() as session:
        dataset = Dataset(task_id=other, content_hash="h", path="x", train_rows=40, holdout_rows=0)
        session.add(dataset)
        session.flush()
        learned = session.exec(select(Pair.id).where(Pair.task_id == other)).all()
        session.add_all(DatasetPair(dataset_id=dataset.id, pair_id=pair_id) for pair_id in learned)
        session.flush()
        moves.merge(session, session.get_one(Task, one), [session.get_one(Task, other)], by="ann")
    found = made(db, one)
    sides: dict[str, set[Split | None]] = defaultdict(set)
    for pair in found:
        if pair.status == PairStatus.READY:
            sides[str(pair.messages[-1]["content"]).rstrip("!")].add(pair.split)
    assert len(found) == 80
    assert len(sides) == 40
    assert all(len(side) == 1 for side in sides.values())
    assert any(pair.reason for pair in found)


def test_postgresql_keeps_the_same_clusters(db: Database, postgres_blank: str, tmp_path: Path) -> None:
    rng = random.Random(10)
    texts = [edited(rng, base) for base in [prose(rng, 30) for _ in range(40)] * 2]
    other = Database(postgres_blank)
    migrate.upgrade(other)
    found = []
    for each in (db, other):
        rows = [told(text, f"answer {n % 9}", n, request={"user": f"u{n % 3}"}) for n, text in enumerate(texts)]
        with each.begin() as session:
            tasks.ensure(session, tasks.identify(orjson.loads(rows[0].request)))
            session.add_all(rows)
        placed = made(each, rows[0].task_id, limit=30)
        dataset = datasets.freeze(each, rows[0].task_id, POLICY, DistillSettings(home=tmp_path))
        firsts: dict[str, str] = {}
        for pair in placed:
            firsts.setdefault(pair.cluster, pair.capture_id)
        found.append(
            ([(pair.capture_id, pair.split, firsts[pair.cluster]) for pair in placed], dataset.train_rows, dataset.holdout_rows)
        )
    other.close()
    assert found[0] == found[1]
