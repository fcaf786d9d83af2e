"""Training from rows to an adapter, on a tiny model: what it writes, what it refuses, and that a kill loses little."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from distill import recipe as recipes
from distill.recipe import BadRecipe, Recipe
from distill.rows import BadData, TrainRow
from distill.rows import read as read_rows
from distill.train import Progress, TrainingDiverged, TrainingStopped, TrainResult, main, train
from tests.models import tiny_llama

SYSTEM = {"role": "system", "content": "Answer with one JSON object and nothing else: the order's number."}


def rows(count: int = 24) -> list[TrainRow]:
    def row(number: int) -> TrainRow:
        question = {"role": "user", "content": f"Where is my order {'ABC'[number % 3]}-{number}?"}
        return TrainRow([SYSTEM, question], None, {"role": "assistant", "content": f'{{"order":"{"ABC"[number % 3]}"}}'})

    return [row(number) for number in range(count)]


def recipe(**changes: Any) -> Recipe:
    settings = {"epochs": 4, "batch_rows": 8, "learning_rate": 0.02, "dtype": "float32", "warmup": 0.0, **changes}
    return recipes.load().model_copy(update=settings)


def run(base: Path, out: Path, given: list[TrainRow] | None = None, **changes: Any) -> tuple[TrainResult, list[Progress]]:
    seen: list[Progress] = []
    return train(base=base, rows=given or rows(), out=out, recipe=recipe(**changes), on_progress=seen.append), seen


def sha256(result: TrainResult) -> str:
    return hashlib.sha256((result.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()


def write(path: Path, given: list[TrainRow]) -> Path:
    path.write_text("".join(json.dumps(row.__dict__ | {"pair_id": "p"}) + "\n" for row in given))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


def test_training_lowers_the_loss_and_reports_every_step(base: Path, tmp_path: Path) -> None:
    result, seen = run(base, tmp_path / "run")
    assert [p.step for p in seen] == list(range(1, 13))
    assert {p.total_steps for p in seen} == {12}
    assert [p.epoch for p in seen] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert seen[-1].rows_done == seen[-1].rows_total == 96
    assert seen[-1].loss < seen[0].loss / 3
    assert seen[0].learning_rate == pytest.approx(0.02)
    assert seen[-1].learning_rate < 0.002
    assert result.steps == 12
    assert result.final_loss == pytest.approx(sum(p.loss for p in seen[-3:]) / 3)
    assert result.rows == 24
    assert result.dropped_rows == 0
    assert result.tokens > 2 * result.computed_tokens > 0
    assert result.rows_per_second > 0
    assert result.resumed_from is None


def test_the_adapter_is_a_peft_folder_of_every_linear_layer(base: Path, tmp_path: Path) -> None:
    result, _ = run(base, tmp_path / "run")
    assert result.adapter == tmp_path / "run" / "adapter"
    config = json.loads((result.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (8, 16, "LORA")
    layers = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(config["target_modules"]) == layers
    tensors = load_file(result.adapter / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * len(layers)
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in tensors.values())
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_peft_loads_the_adapter_and_says_what_was_learned(base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from distill import render

    result, _ = run(base, tmp_path / "run", epochs=30)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), result.adapter)
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt = torch.tensor([render.prompt_ids(tokenizer, rows()[1].messages)])
    answer = model.generate(input_ids=prompt, max_new_tokens=40, do_sample=False)[0, prompt.shape[1] :]
    assert tokenizer.decode(answer) == '{"order":"B"}<|im_end|>'


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(base: Path, tmp_path: Path) -> None:
    first, again = (sha256(run(base, tmp_path / name)[0]) for name in ("a", "b"))
    assert first == again
    assert sha256(run(base, tmp_path / "c", seed=1)[0]) != first


def test_sharing_the_prefix_or_not_trains_the_same_adapter(base: Path, tmp_path: Path) -> None:
    shared, _ = run(base, tmp_path / "a", epochs=1)
    plain, _ = run(base, tmp_path / "b", epochs=1, share_prefix=False)
    assert plain.computed_tokens == plain.tokens == shared.tokens > 2 * shared.computed_tokens
    assert plain.final_loss == pytest.approx(shared.final_loss, rel=1e-3)


def test_a_finished_training_is_returned_at_once(base: Path, tmp_path: Path) -> None:
    result, _ = run(base, tmp_path / "run")
    again, seen = run(base, tmp_path / "run")
    assert again == result
    assert seen == []


def test_a_folder_of_another_training_is_refused(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "run")
    with pytest.raises(BadData, match="another training"):
        run(base, tmp_path / "run", given=rows(23))


def test_a_stopped_training_goes_on_where_it_was_and_ends_with_the_same_bytes(base: Path, tmp_path: Path) -> None:
    whole, _ = run(base, tmp_path / "whole")
    seen: list[Progress] = []
    settings: dict[str, Any] = {
        "base": base,
        "rows": rows(),
        "out": tmp_path / "run",
        "recipe": recipe(),
        "on_progress": seen.append,
    }
    with pytest.raises(TrainingStopped, match="after step 5 of 12"):
        train(**settings, should_stop=lambda: len(seen) == 5)
    with pytest.raises(BadData, match="another training"):
        run(base, tmp_path / "run", seed=3)
    result = train(**settings)
    assert [p.step for p in seen] == list(range(1, 13))
    assert result.resumed_from == 5
    assert result.final_loss == pytest.approx(whole.final_loss)
    assert sha256(result) == sha256(whole)


def test_a_training_killed_in_the_middle_resumes_from_its_last_checkpoint(base: Path, tmp_path: Path) -> None:
    settings = recipe(epochs=40, checkpoint_seconds=0.001)
    data = write(tmp_path / "data.jsonl", rows())
    (tmp_path / "recipe.json").write_text(settings.model_dump_json())
    command: list[str | Path] = [sys.executable, "-m", "distill.train", "--base", base, "--data", data, "--out", tmp_path / "run"]
    command += ["--recipe", tmp_path / "recipe.json", "--json"]
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    reports = (json.loads(line) for line in trainer.stdout if line.startswith("{"))
    next(report for report in reports if report["progress"]["step"] == 7)
    trainer.send_signal(signal.SIGKILL)
    assert trainer.wait() == -signal.SIGKILL
    assert not (tmp_path / "run" / "adapter").exists()
    assert 1 <= len(list((tmp_path / "run").glob("checkpoint-*.pt"))) <= 3

    whole, _ = run(base, tmp_path / "whole", epochs=40)
    seen: list[Progress] = []
    result = train(base=base, rows=read_rows(data), out=tmp_path / "run", recipe=settings, on_progress=seen.append)
    assert result.resumed_from is not None
    assert 6 <= result.resumed_from < 120
    assert seen[0].step == result.resumed_from + 1
    assert result.steps == whole.steps == 120
    assert result.final_loss == pytest.approx(whole.final_loss, rel=0.05, abs=0.01)


def test_a_loss_that_is_no_number_fails_the_run_and_writes_no_adapter(base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    broken = tmp_path / "broken"
    tiny_llama(broken)
    model.save_pretrained(broken)
    with pytest.raises(TrainingDiverged, match="at step 1"):
        run(broken, tmp_path / "run")
    assert not (tmp_path / "run" / "adapter").exists()


def test_rows_that_are_too_long_or_not_text_are_dropped_and_counted(base: Path, tmp_path: Path) -> None:
    long = TrainRow([{"role": "user", "content": "word " * 500}], None, {"role": "assistant", "content": "x"})
    picture = TrainRow([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], None, long.completion)
    result, _ = run(base, tmp_path / "run", [*rows(), long, picture], max_length=200, epochs=1)
    assert (result.rows, result.dropped_rows) == (24, 2)
    with pytest.raises(BadData, match="no row of 1 can be learned from"):
        run(base, tmp_path / "other", [long], max_length=200)


def test_a_row_of_a_shape_that_nobody_has_thought_of_is_dropped_and_counted(base: Path, tmp_path: Path) -> None:
    calling = {"role": "assistant", "content": None, "tool_calls": [{"type": "custom", "custom": {"name": "f", "input": "x"}}]}
    odd = [TrainRow([{"role": "user", "content": "x"}], None, calling), TrainRow([{"content": "x"}], None, rows(1)[0].completion)]
    result, _ = run(base, tmp_path / "run", [*rows(), *odd], epochs=1)
    assert (result.rows, result.dropped_rows) == (24, 2)


def test_a_torn_checkpoint_is_deleted_and_the_one_before_it_taken(base: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "run", list[Progress]()
    settings: dict[str, Any] = {"base": base, "rows": rows(), "out": out, "recipe": recipe(), "on_progress": seen.append}
    with pytest.raises(TrainingStopped):
        train(**settings, should_stop=lambda: len(seen) == 7)
    assert sorted(file.name for file in out.glob("*.pt")) == ["checkpoint-0000006.pt", "checkpoint-0000007.pt"]
    newest = out / "checkpoint-0000007.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert train(**settings).resumed_from == 6


def test_what_a_training_left_that_was_killed_while_it_wrote_is_swept_away(base: Path, tmp_path: Path) -> None:
    torn = tmp_path / "run" / ".writing-adapter"
    torn.mkdir(parents=True)
    (torn / "adapter_model.safetensors").write_text("half")
    run(base, tmp_path / "run", epochs=1)
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["adapter"]


def test_the_pace_of_a_run_that_was_killed_after_its_last_step_is_that_of_its_steps(base: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "run", list[Progress]()
    settings: dict[str, Any] = {"base": base, "rows": rows(), "out": out, "recipe": recipe(), "on_progress": seen.append}
    with pytest.raises(TrainingStopped, match="after step 12 of 12"):
        train(**settings, should_stop=lambda: len(seen) == 12)
    result = train(**settings)
    assert result.resumed_from == 12
    assert result.rows_per_second == pytest.approx(seen[-1].rows_per_second, rel=0.5)


def test_weights_of_another_size_are_another_training(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "base"
    shutil.copytree(base, other)
    run(other, tmp_path / "run", epochs=1)
    with (other / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BadData, match="another training"):
        run(other, tmp_path / "run", epochs=1)


def test_both_forms_of_lines_are_read(tmp_path: Path) -> None:
    row = rows(1)[0]
    path = tmp_path / "data.jsonl"
    lines = [row.__dict__, {"messages": [*row.messages, row.completion]}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert read_rows(path) == [row, row]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"messages": []}', '{"messages": [{"role": "user", "content": "x"}]}', '{"messages": 1, "completion": {}}'],
)
def test_a_line_that_is_no_row_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "data.jsonl", rows(1))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(BadData, match="line 2"):
        read_rows(path)


def test_the_command_line_says_what_is_wrong_and_ends_with_1(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data.jsonl", rows(2))
    arguments = ["--base", str(tmp_path / "none"), "--data", str(data), "--out", str(tmp_path / "run")]
    assert main([*arguments, "--json"]) == 1
    assert "no model folder" in json.loads(capsys.readouterr().out)["error"]
    assert main([*arguments[:2], "--data", str(tmp_path / "no.jsonl"), *arguments[4:]]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_the_command_line_prints_progress_and_result_as_json_lines(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data.jsonl", rows(4))
    (tmp_path / "recipe.toml").write_text('epochs = 1\ndtype = "float32"\n')
    options = ["--recipe", str(tmp_path / "recipe.toml"), "--json"]
    assert main(["--base", str(base), "--data", str(data), "--out", str(tmp_path / "run"), *options]) == 0
    *progress, last = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert progress[-1]["progress"]["step"] == progress[-1]["progress"]["total_steps"]
    assert last["result"]["adapter"] == str(tmp_path / "run" / "adapter")
    assert last["result"]["rows"] == 4


def test_the_command_line_shows_a_bar_to_people(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "data.jsonl", rows(4))
    assert main(["--base", str(base), "--data", str(data), "--out", str(tmp_path / "run")]) == 0
    assert "rows/s" in capsys.readouterr().out


def test_a_recipe_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("epochs = 7\n")
    assert recipes.load(path) == recipes.load().model_copy(update={"epochs": 7})
    assert recipes.load(path).hash() != recipes.load().hash()
    path.with_suffix(".json").write_text(json.dumps({"epochs": 7}))
    assert recipes.load(path.with_suffix(".json")).hash() == recipes.load(path).hash()


@pytest.mark.parametrize(
    ("text", "problem"), [("epoch = 3", "epoch: Extra"), ("epochs = 0", "epochs: Input"), ("epochs = ", "well-formed")]
)
def test_a_recipe_with_an_unknown_or_impossible_choice_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(BadRecipe, match=problem):
        recipes.load(path)


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"none\.toml"):
        recipes.load(tmp_path / "none.toml")


def test_a_checkpoint_is_written_at_the_end_of_every_epoch(base: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    def note(progress: Progress) -> None:
        seen.append(len(list((tmp_path / "run").glob("checkpoint-*.pt"))))

    train(base=base, rows=rows(), out=tmp_path / "run", recipe=recipe(checkpoint_seconds=1e6), on_progress=note)
    assert seen == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2]  # three steps an epoch; the last two are kept


def test_validation_rows_say_how_good_each_epoch_is_and_the_best_one_is_kept(base: Path, tmp_path: Path) -> None:
    given = {"base": base, "rows": rows(), "validation": rows(30)[24:], "on_progress": lambda _: None}
    whole = train(**given, out=tmp_path / "whole", recipe=recipe(patience=0))  # type: ignore[arg-type]
    assert len(whole.validation_losses) == whole.best_epoch == 4
    assert whole.validation_losses[-1] < whole.validation_losses[0]
    # Learned by heart, far too fast: it gets worse, and is stopped.
    seen: list[Progress] = []
    hot = recipe(epochs=30, learning_rate=0.1, patience=2, schedule="constant", keep_epochs=True)
    spoilt = train(**given | {"on_progress": seen.append, "out": tmp_path / "hot", "recipe": hot})  # type: ignore[arg-type]
    losses = spoilt.validation_losses
    assert len(losses) < 30
    assert spoilt.best_epoch == 1 + losses.index(min(losses)) == len(losses) - 2
    assert [p.validation_loss for p in seen if p.validation_loss is not None] == losses
    best = tmp_path / "hot" / f"epoch-{spoilt.best_epoch}" / "adapter_model.safetensors"
    assert best.read_bytes() == (spoilt.adapter / best.name).read_bytes()
    assert len(list((tmp_path / "hot").glob("epoch-*/adapter_config.json"))) == len(losses)
    taken = train(**given | {"out": tmp_path / "taken", "recipe": hot.model_copy(update={"take_epoch": 2})})  # type: ignore[arg-type]
    second = tmp_path / "hot" / "epoch-2" / "adapter_model.safetensors"
    assert second.read_bytes() == (taken.adapter / second.name).read_bytes() != best.read_bytes()
    assert (taken.best_epoch, taken.steps) == (2, spoilt.steps * 2 // len(losses))


def test_a_stopped_training_remembers_its_best_epoch(base: Path, tmp_path: Path) -> None:
    hot = recipe(epochs=30, learning_rate=0.1, patience=2, schedule="constant")
    seen: list[Progress] = []
    given = {"base": base, "rows": rows(), "validation": rows(30)[24:], "recipe": hot, "on_progress": seen.append}
    whole = train(**given, out=tmp_path / "whole")  # type: ignore[arg-type]
    while True:
        count = len(seen)
        try:
            result = train(**given, out=tmp_path / "run", should_stop=lambda n=count: len(seen) >= n + 2)  # type: ignore[misc, arg-type]
            break
        except TrainingStopped:
            continue
    assert sha256(result) == sha256(whole)
    assert result.validation_losses == whole.validation_losses


def contested() -> list[TrainRow]:
    """Both answers are learned equally often; people prefer the one that the base model finds likelier."""
    good, bad = ({"role": "assistant", "content": text} for text in ("no", "yes"))
    prompt = [{"role": "user", "content": "Is it so?"}]
    return [TrainRow(prompt, None, good, rejected=bad), TrainRow(prompt, None, bad)] * 8


def test_dpo_prefers_the_answer_that_replaced_another(base: Path, tmp_path: Path) -> None:
    from distill import render, step, student

    def margin(objective: str, share: bool) -> float:
        """In nats, how much likelier the better answer is than the other, to a student that has learned."""
        choices = recipe(objective=objective, beta=1.0, epochs=30, batch_rows=16, learning_rate=0.01, share_prefix=share)
        out = tmp_path / f"{objective} {share}"
        adapter = train(base=base, rows=contested(), out=out, recipe=choices, on_progress=lambda _: None).adapter
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(base)
        pupil = student.load(base, choices)
        learned = load_file(adapter / "adapter_model.safetensors")
        pupil.take({name.replace(".weight", ".default.weight"): value for name, value in learned.items()})
        both = [render.example(tokenizer, row.messages, None, row.completion) for row in contested()[:2]]
        better, worse = step.judge(pupil.model, both, token_budget=1000)
        return better.likelihood - worse.likelihood

    assert abs(margin("sft", share=True)) < 0.5
    assert margin("dpo", share=True) > 1
    assert margin("dpo", share=False) > 1


def test_a_row_of_weight_two_counts_as_if_it_were_there_twice(base: Path, tmp_path: Path) -> None:
    first, *others = rows(6)
    heavy = TrainRow(first.messages, None, first.completion, weight=2.0)
    settings: dict[str, Any] = {"epochs": 3, "batch_rows": 10}
    once, _ = run(base, tmp_path / "a", [heavy, *others], **settings)
    twice, _ = run(base, tmp_path / "b", [first, first, *others], **settings)
    assert once.final_loss == pytest.approx(twice.final_loss, rel=1e-4)


def test_memory_that_does_not_suffice_makes_the_parts_smaller_and_the_training_goes_on(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit of the address space, as little as the interpreter has now and some: as a small machine would have."""
    code = """
import resource, sys
from pathlib import Path
import torch
from distill.rows import read as read_rows
from distill.train import train
from distill import recipe as recipes
base, data, out = map(Path, sys.argv[1:4])
recipe = recipes.load(Path(sys.argv[4]))
torch.set_num_threads(1)
train(base=base, rows=read_rows(data)[:1], out=out / "warm", recipe=recipe, on_progress=lambda p: None)
held = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[5]), held + int(sys.argv[5])))
print(train(base=base, rows=read_rows(data), out=out, recipe=recipe, on_progress=lambda p: None).steps)
"""
    long = [
        TrainRow([{"role": "user", "content": f"{i} " + "What is it? " * 60}], None, {"role": "assistant", "content": "yes"})
        for i in range(64)
    ]
    data = write(tmp_path / "data.jsonl", long)
    (tmp_path / "recipe.json").write_text(recipe(epochs=1, batch_rows=64, token_budget=100_000).model_dump_json())

    def attempt(megabytes: int) -> subprocess.CompletedProcess[str]:
        arguments = [base, data, tmp_path / str(megabytes), tmp_path / "recipe.json", str(megabytes << 20)]
        return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)

    for megabytes in (400, 200, 100, 50, 25):  # what the allocator still holds, and so what is too little, differs by machine
        little = attempt(megabytes)
        assert little.stdout.strip() == "1", little.stderr[-2000:]
        if "not enough memory" in little.stderr:
            break
    else:
        pytest.fail("memory sufficed everywhere")
    assert attempt(1).returncode != 0


def test_a_training_that_is_killed_at_one_place_again_and_again_takes_less_memory(base: Path, tmp_path: Path) -> None:
    from distill import checkpoint

    budgets = []
    for _ in range(5):
        state = checkpoint.State("f", budget=1000, step=7)
        checkpoint.begin(tmp_path, state)
        budgets.append(state.budget)
    assert budgets == [1000, 1000, 500, 250, 125]
    checkpoint.begin(tmp_path, later := checkpoint.State("f", budget=1000, step=8))
    assert later.budget == 1000


def test_a_loss_that_grows_fails_the_run(base: Path, tmp_path: Path) -> None:
    """To see a loss grow takes a base model that knows something: what one training made of it."""
    able = tmp_path / "able"
    shutil.copytree(base, able)
    taught, _ = run(base, tmp_path / "first", epochs=10)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), taught.adapter)
    model.merge_and_unload().save_pretrained(able)
    with pytest.raises(TrainingDiverged, match=r"in the beginning and is .* try a learning_rate below 30"):
        run(able, tmp_path / "run", epochs=3, learning_rate=30.0, clip=1e9, schedule="constant")
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_student_is_shown_what_its_transform_leaves_of_the_prompt(base: Path, tmp_path: Path) -> None:
    from store.prompts import Piece, Transform

    bare = [TrainRow(row.messages[1:], None, row.completion) for row in rows()]
    without = Transform((Piece("system", (SYSTEM["content"],)),))
    settings: dict[str, Any] = {"base": base, "recipe": recipe(), "on_progress": lambda _: None}
    stripped = train(rows=rows(), out=tmp_path / "a", transform=without, **settings)
    assert sha256(stripped) == sha256(train(rows=bare, out=tmp_path / "b", **settings))
    odd = TrainRow([{"role": "system", "content": "Another."}, *rows(1)[0].messages[1:]], None, rows(1)[0].completion)
    assert train(rows=[*rows(), odd], out=tmp_path / "c", transform=without, **settings).dropped_rows == 1
