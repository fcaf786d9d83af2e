"""Several processes that train one student: how rows are divided, and that the outcome is one process's."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from distill import launch, tree
from distill.render import Example
from distill.rows import TrainRow
from distill.train import Progress, train
from distill.world import ALONE, divide
from tests.distill.test_train import recipe, rows, write


def test_every_row_is_one_part_s_and_the_parts_are_about_equal() -> None:
    drawn = random.Random(0)
    for parts in (2, 3, 8):
        prefix = drawn.choices(range(100), k=400)
        given = [Example(prefix + drawn.choices(range(100), k=drawn.randint(5, 60)), [1, 2, 3]) for _ in range(64)]
        found = divide(given, parts)
        assert sorted(i for part in found for i in part) == list(range(64))
        sizes = [sum(node.size for node in tree.grow([given[i] for i in part])) for part in found]
        assert max(sizes) - min(sizes) <= 2 * 65


def test_rows_that_begin_alike_stay_together() -> None:
    given = [Example([system] * 300 + [1000 + i], [7]) for i in range(10) for system in (1, 2)]
    both = divide(given, 2)
    assert sorted({given[i].prompt[0] for i in part} for part in both) == [{1}, {2}]


def test_there_may_be_fewer_rows_than_parts() -> None:
    assert sorted(i for part in divide([Example([1, 2], [3])], 4) for i in part) == [0]
    assert divide([], 3) == [[], [], []]


def test_alone_nothing_is_divided() -> None:
    given = [Example([2], [1]), Example([1], [1])]
    assert ALONE.part(given) == [0, 1]
    assert ALONE.each(given, lambda mine: [float(i) for i in mine]) == [0.0, 1.0]
    assert ALONE.total(7) == 7


def contested() -> list[TrainRow]:
    """Some rows with an answer that is worse, some heavier than others."""
    worse = {"role": "assistant", "content": "I do not know."}
    return [
        TrainRow(row.messages, None, row.completion, worse if number % 3 == 0 else None, 1.0 + number % 2)
        for number, row in enumerate(rows())
    ]


def test_two_processes_train_what_one_does_also_when_they_are_stopped_between(base: Path, tmp_path: Path) -> None:
    choices = recipe(objective="dpo", epochs=2, learning_rate=0.01)
    seen: list[Progress] = []
    alone = train(
        base=base, rows=contested(), validation=rows(30)[24:], out=tmp_path / "one", recipe=choices, on_progress=seen.append
    )
    (tmp_path / "recipe.json").write_text(choices.model_dump_json())
    data, held = write(tmp_path / "data.jsonl", contested()), write(tmp_path / "validation.jsonl", rows(30)[24:])
    arguments = ["--base", str(base), "--data", str(data), "--validation", str(held), "--recipe", str(tmp_path / "recipe.json")]
    arguments += ["--out", str(tmp_path / "two"), "--json"]
    said: list[dict[str, Any]] = []

    def say(line: str) -> None:
        if line.startswith("{"):
            said.append(json.loads(line))

    assert launch.run(launch.Here(), 2, arguments, tmp_path / "two", say, lambda: bool(said)) == 143
    stopped = len(said) - 1
    assert 0 < stopped < len(seen)
    assert "stopped as asked" in said.pop()["error"]
    assert launch.run(launch.Here(), 2, arguments, tmp_path / "two", say, lambda: False) == 0
    result = said.pop()["result"]
    assert result["resumed_from"] == stopped
    assert [each["progress"]["loss"] for each in said] == pytest.approx([p.loss for p in seen], abs=1e-4)
    assert result["validation_losses"] == pytest.approx(alone.validation_losses, abs=1e-4)
    assert (result["tokens"], result["rows"]) == (alone.tokens, alone.rows)
    one, two = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all((one[name] - two[name]).abs().max() < 1e-3 for name in one)


def test_torchrun_starts_it_too(base: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", rows(8))
    (tmp_path / "recipe.json").write_text(recipe(epochs=1).model_dump_json())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    trained = ["-m", "distill.train", "--base", str(base), "--data", str(data), "--out", str(tmp_path / "run"), "--json"]
    trained += ["--recipe", str(tmp_path / "recipe.json")]
    done = subprocess.run([*torchrun, *trained], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert ["result" in each for each in said] == [False, True]  # one step; one process reports
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
