"""Which pairs a dataset has: people's word, majorities, and nobody owning it."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
from sqlmodel import select

from distill import choices, datasets, pairs
from distill.choices import Chosen
from distill.settings import DistillSettings
from store.policy import Policy
from store.session import Database
from store.states import PairStatus, ReviewKind, Server, Split
from store.tables import Capture, Pair, Review
from tests.distill.conftest import exchange
from tests.distill.test_sketches import prose

POLICY = Policy()


def made(db: Database, task: str, policy: Policy = POLICY) -> Chosen:
    """What is chosen of all that there is."""
    with db.begin() as session:
        while pairs.extract(session, task, policy):
            pass
    with db.read() as session:
        return choices.choose(session, task, policy)


def told(prompt: str, answer: str, number: int, **changes: object) -> Capture:
    return exchange(prompt, answer, id=f"cap_{number:026x}", **changes)


def of(db: Database, capture: Capture) -> Pair:
    with db.read() as session:
        return session.exec(select(Pair).where(Pair.capture_id == capture.id)).one()


def say(db: Database, capture: Capture, kind: ReviewKind, answer: str | None = None) -> None:
    correction = {"role": "assistant", "content": answer} if answer is not None else None
    with db.begin() as session:
        session.add(Review(capture_id=capture.id, kind=kind, correction=correction))


def test_a_poisoner_with_ten_thousand_rows_owns_a_hundredth_of_the_training_set(db: Database, put: Callable[..., str]) -> None:
    rng = random.Random(1)
    users = [*(f"u{n % 150}" for n in range(450)), *["mallory"] * 10_000]
    rng.shuffle(users)
    asked = [told(f"{n} {rng.random()}", f"answer {n % 7}", n, request={"user": user}) for n, user in enumerate(users)]
    for capture in asked:
        capture.task_id = asked[0].task_id
    put(asked[0])
    with db.begin() as session:
        session.add_all(asked[1:])
    by_capture = {capture.id: user for capture, user in zip(asked, users, strict=True)}
    chosen = made(db, asked[0].task_id)
    with db.read() as session:
        capture_of = dict(session.exec(select(Pair.id, Pair.capture_id)).all())
    for side in (chosen.train, chosen.validation, chosen.holdout):
        of_users = Counter(by_capture[capture_of[choice.pair_id]] for choice in side)
        assert of_users["mallory"] <= 0.01 * len(side)
    assert len(chosen.train) >= 0.9 * 0.7 * 450
    assert Counter(chosen.left_out.values())[choices.LOUD] > 9000


def test_what_a_person_approved_is_not_capped(db: Database, put: Callable[..., str]) -> None:
    rows = [told(str(n), str(n % 3), n, request={"user": "mallory" if n < 200 else f"u{n}"}) for n in range(500)]
    task = put(*rows)
    before = made(db, task)
    for capture in rows[:12]:
        say(db, capture, ReviewKind.APPROVE)
    kept = {choice.pair_id for choice in made(db, task).train}
    approved = {of(db, capture).id for capture in rows[:12]}  # the first window: all but its end is trained on
    assert approved <= kept
    assert not approved <= {choice.pair_id for choice in before.train}


def test_a_task_in_which_nobody_is_named_is_not_capped(db: Database, put: Callable[..., str]) -> None:
    chosen = made(db, put(*(told(str(n), str(n % 3), n) for n in range(60))))
    assert (len(chosen.train), len(chosen.holdout), chosen.left_out) == (48, 12, {})


def test_a_virtual_key_stands_for_who_is_not_named(db: Database) -> None:
    named, keyed, neither = (
        pairs.judge(exchange("4", "even", **changes), POLICY).contributor
        for changes in ({"request": {"user": "ann"}, "key_id": "key_1"}, {"key_id": "key_1"}, {})
    )
    assert named
    assert keyed
    assert (named == keyed, neither) == (False, "")
    safety = pairs.judge(exchange("4", "even", request={"safety_identifier": "ann"}), POLICY).contributor
    assert safety == named == pairs.judge(exchange("4", "even", meta={"user": "ann"}), POLICY).contributor


def test_of_different_answers_to_one_prompt_the_majority_is_learned_else_none(db: Database, put: Callable[..., str]) -> None:
    two, tie = ["A", "B", "A"], ["A", "B"]
    rows = [told("which is it, two to one?", answer, n) for n, answer in enumerate(two)]
    rows += [told("and which of the two is this?", answer, n) for n, answer in enumerate(tie, 3)]
    rows += [told(prose(random.Random(n), 10), "C", n) for n in range(5, 40)]
    chosen = made(db, put(*rows))
    learned = {choice.pair_id for choice in chosen.train}
    assert of(db, rows[0]).id in learned
    assert chosen.left_out[of(db, rows[1]).id] == f"{choices.DISAGREES}: 2 of 3 times"
    assert of(db, rows[2]).reason == "exact duplicate of an earlier pair"
    assert {chosen.left_out[of(db, row).id] for row in rows[3:5]} == {choices.UNDECIDED}


def test_a_person_outvotes_the_teacher(db: Database, put: Callable[..., str]) -> None:
    rows = [told("which is it, two to one?", answer, n) for n, answer in enumerate(["A", "B", "A"])]
    task = put(*rows, *(told(prose(random.Random(n), 10), "C", n) for n in range(5, 40)))
    made(db, task)
    say(db, rows[1], ReviewKind.APPROVE)
    chosen = made(db, task)
    assert chosen.left_out[of(db, rows[0]).id] == choices.PREFERRED
    assert of(db, rows[1]).id in {choice.pair_id for choice in chosen.train}
    say(db, rows[0], ReviewKind.CORRECT, "B")
    assert choices.REPEATED in made(db, task).left_out.values()


def test_what_a_person_replaced_or_rejected_is_the_worse_answer(db: Database, put: Callable[..., str]) -> None:
    rows = [told(prose(random.Random(n), 10), f"answer {n}", n) for n in range(40)]
    again = told(prose(random.Random(3), 10), "another answer", 50)
    student = told(prose(random.Random(99), 10), "a student's", 51, served_by=Server.STUDENT)
    task = put(*rows, again, student)
    made(db, task)
    say(db, rows[2], ReviewKind.CORRECT, "a better one")
    say(db, again, ReviewKind.REJECT)
    say(db, student, ReviewKind.CORRECT, "not a student's")
    chosen = {choice.pair_id: choice for choice in made(db, task).train}
    corrected, kept, of_student = (chosen[of(db, capture).id] for capture in (rows[2], rows[3], student))
    assert (corrected.completion["content"], corrected.rejected) == ("a better one", {"role": "assistant", "content": "answer 2"})
    assert (kept.completion["content"], kept.rejected) == ("answer 3", {"role": "assistant", "content": "another answer"})
    assert (of_student.completion["content"], of_student.rejected) == (
        "not a student's",
        {"role": "assistant", "content": "a student's"},
    )
    assert chosen[of(db, rows[4]).id].rejected is None


def test_the_holdout_has_one_row_a_cluster_and_a_big_cluster_weighs_less_than_its_rows(
    db: Database, put: Callable[..., str]
) -> None:
    text = {n: prose(random.Random(n), 30) for n in range(40)}
    rows = [told(text[n], f"answer {n}", n) for n in range(40)]  # the first is trained on, the twentieth held out
    rows[0].meta = {"conversation": "long"}
    rows += [told(prose(random.Random(k), 20), f"more {k}", k, meta={"conversation": "long"}) for k in range(100, 161)]
    rows.append(told(f"{text[19]}?", "again", 200))
    task = put(*rows)
    chosen = made(db, task)
    with db.read() as session:
        found = {pair.id: pair for pair in session.exec(select(Pair))}
    held_out = Counter(found[choice.pair_id].cluster for choice in chosen.holdout)
    assert set(held_out.values()) == {1}
    assert choices.ONE_A_CLUSTER in chosen.left_out.values()
    sizes = Counter(found[choice.pair_id].cluster for choice in chosen.train)
    assert sizes.most_common(1)[0][1] == POLICY.cluster_rows
    assert Counter(chosen.left_out.values())[choices.CROWDED] == 62 - POLICY.cluster_rows
    assert sum(choice.weight for choice in chosen.train) == pytest.approx(len(chosen.train), rel=1e-3)
    weights = {sizes[found[choice.pair_id].cluster]: choice.weight for choice in chosen.train}
    assert weights[1] / weights[50] == pytest.approx(50**0.5, rel=1e-3)


def test_why_a_pair_is_not_in_the_latest_dataset_is_on_its_row(
    db: Database, put: Callable[..., str], settings: DistillSettings
) -> None:
    rows = [told(prose(random.Random(n), 10), f"answer {n % 3}", n) for n in range(60)]
    task = put(*rows)
    made(db, task)
    say(db, rows[0], ReviewKind.REJECT)
    dataset = datasets.freeze(db, task, POLICY, settings)
    assert of(db, rows[0]).left_out == choices.REJECTED
    assert of(db, rows[1]).left_out == ""
    say(db, rows[0], ReviewKind.APPROVE)
    after = datasets.freeze(db, task, POLICY, settings)
    assert (of(db, rows[0]).left_out, after.train_rows) == ("", dataset.train_rows + 1)


def test_the_files_of_a_dataset_are_the_same_whenever_it_is_frozen_and_name_all_three_sides(
    db: Database, put: Callable[..., str], settings: DistillSettings
) -> None:
    rows = [told(prose(random.Random(n), 10), f"answer {n % 3}", n) for n in range(300)]
    task = put(*rows)
    made(db, task)
    first, second = (datasets.freeze(db, task, POLICY, settings) for _ in range(2))
    assert first.id == second.id
    assert (first.train_rows, first.validation_rows, first.holdout_rows) == (220, 20, 60)
    assert len(list(datasets.read(settings.home_path / first.path, "validation"))) == 20
    with db.read() as session:
        assert Counter(session.exec(select(Pair.split))) == {Split.TRAIN: 220, Split.VALIDATION: 20, Split.HOLDOUT: 60}


def test_a_dataset_of_before_there_were_validation_rows_is_whole(
    db: Database, put: Callable[..., str], settings: DistillSettings
) -> None:
    task = put(*(told(str(n), str(n % 3), n) for n in range(60)))
    made(db, task)
    dataset = datasets.freeze(db, task, POLICY, settings)
    folder = settings.home_path / dataset.path
    (folder / "validation.jsonl").unlink()
    with (folder / "train.jsonl").open("rb") as train, (folder / "holdout.jsonl").open("rb") as holdout:
        dataset.content_hash = datasets._digest([("train", train), ("holdout", holdout)])
    datasets.check_whole(dataset, settings)
    assert list(datasets.read(folder, "validation")) == []
    (folder / "holdout.jsonl").write_text("")
    with pytest.raises(datasets.Damaged):
        datasets.check_whole(dataset, settings)


def test_a_refusal_in_words_and_what_is_too_long_are_left_out_unless_the_policy_wants_them(db: Database) -> None:
    refusal, long = exchange("4", "I'm sorry, but I can't help with that."), exchange("4" * 500, "even")
    assert pairs.judge(refusal, POLICY).reason == "the teacher refused in words"
    assert pairs.judge(refusal, Policy(refusals=True)).status == PairStatus.READY
    assert pairs.judge(refusal, POLICY, {"role": "assistant", "content": "I can't help with that."}).status == PairStatus.READY
    assert "longer than 100 characters" in pairs.judge(long, Policy(max_characters=100)).reason


def test_an_answer_in_another_language_is_left_out_and_a_correction_of_it_is_learned(db: Database, put: Callable[..., str]) -> None:
    from tests.distill.test_language import ENGLISH, GERMAN

    rows = [told(f"{n} {ENGLISH}", f"{ENGLISH} {n}", n, meta={"conversation": str(n)}) for n in range(60)]
    odd = told(f"60 {ENGLISH}", GERMAN, 60, meta={"conversation": "60"})
    task = put(*rows, odd)
    made(db, task)
    assert of(db, odd).reason == "its answer is in another language (de) than the task's (en)"
    say(db, odd, ReviewKind.CORRECT, GERMAN)
    made(db, task)
    assert of(db, odd).status == PairStatus.READY


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory) -> DistillSettings:
    return DistillSettings(home=tmp_path_factory.mktemp("home"))
