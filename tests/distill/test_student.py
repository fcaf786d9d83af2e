"""What learns: LoRA matrices, the same on a base in 4 bits, all weights of the linear layers; and what of it is served."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill import render, step, student
from distill.recipe import BadRecipe
from distill.render import Example
from distill.train import TrainingStopped, train
from tests.distill.test_train import recipe, rows, run, sha256


def examples(base: Path, count: int = 4) -> list[Example]:
    tokenizer = AutoTokenizer.from_pretrained(base)
    return [render.example(tokenizer, row.messages, None, row.completion) for row in rows(count)]


def gradients(pupil: student.Student, given: list[Example]) -> tuple[list[float], dict[str, torch.Tensor]]:
    found = step.backward(pupil.model, given, [0.1] * len(given), token_budget=1000)
    return found, {name: parameter.grad for name, parameter in pupil.learning.items() if parameter.grad is not None}


@pytest.mark.parametrize("share", [True, False])
def test_on_a_base_in_four_bits_the_gradients_are_those_of_the_weights_that_the_bits_stand_for(base: Path, share: bool) -> None:
    from bitsandbytes.functional import dequantize_4bit

    choices = recipe(share_prefix=share)
    four, plain = student.load(base, recipe(method="qlora", share_prefix=share)), student.load(base, choices)
    plain.take(four.weights())
    given = examples(base)
    step.judge(four.model, given, token_budget=1000)  # without gradients, as validation does between the steps
    layers = 0
    with torch.no_grad():
        for name, module in plain.model.named_modules():
            if isinstance(module, student.LoraLinear):
                packed = four.model.get_submodule(name).base_layer.weight
                assert packed.dtype == torch.uint8
                module.base_layer.weight.copy_(dequantize_4bit(packed, packed.quant_state))
                layers += 1
        for pupil in (four, plain):
            for name, parameter in pupil.learning.items():
                if "lora_B" in name:
                    parameter.fill_(0.01)
    assert layers == 14
    (found, got), (expected, wanted) = gradients(four, given), gradients(plain, given)
    assert found == pytest.approx(expected, rel=1e-4)
    assert got.keys() == wanted.keys() == four.learning.keys()
    assert all((got[name] - wanted[name]).norm() <= 1e-4 * wanted[name].norm() for name in got)


def test_a_student_on_four_bits_learns_and_its_adapter_is_judged_on_the_whole_base(base: Path, tmp_path: Path) -> None:
    result = train(
        base=base, rows=rows(), validation=rows(30)[24:], out=tmp_path, recipe=recipe(method="qlora"), on_progress=lambda _: None
    )
    assert result.validation_losses[-1] < result.validation_losses[0] / 2
    assert result.served_loss == pytest.approx(result.validation_losses[-1], abs=0.1)
    assert result.served_loss != result.validation_losses[-1]
    assert len(load_file(result.adapter / "adapter_model.safetensors")) == 28


def test_without_its_package_four_bits_are_refused_by_name(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as Python has it where it is not installed
    with pytest.raises(BadRecipe, match="needs the package bitsandbytes"):
        student.load(base, recipe(method="qlora"))


def test_where_all_weights_learn_they_are_the_linear_layers_in_float32(base: Path) -> None:
    pupil = student.load(base, recipe(method="full", dtype="bfloat16"))
    assert len(pupil.learning) == 14
    assert {parameter.dtype for parameter in pupil.learning.values()} == {torch.float32}
    fixed = {name: parameter for name, parameter in pupil.model.named_parameters() if not parameter.requires_grad}
    assert {name.split(".")[-2] for name in fixed} == {
        "embed_tokens",
        "norm",
        "input_layernorm",
        "post_attention_layernorm",
    }
    assert {parameter.dtype for parameter in fixed.values()} == {torch.bfloat16}
    _, got = gradients(pupil, examples(base))
    assert got.keys() == pupil.learning.keys()


def test_the_whole_model_is_left_if_wished_and_the_adapter_holds_what_it_says(base: Path, tmp_path: Path) -> None:
    def of(rank: int) -> Any:
        choices = recipe(method="full", learning_rate=0.003, epochs=8, rank=rank, alpha=16.0, keep_model=rank == 64)
        out = tmp_path / str(rank)
        return train(base=base, rows=rows(), validation=rows(30)[24:], out=out, recipe=choices, on_progress=lambda _: None)

    little, whole = of(4), of(64)
    assert little.validation_losses == whole.validation_losses
    assert whole.kept == pytest.approx(1.0, abs=1e-5)
    assert whole.served_loss == pytest.approx(whole.validation_losses[-1], abs=1e-4)
    assert whole.served_loss < little.served_loss < whole.validation_losses[0]
    assert not (tmp_path / "4" / "model").exists()
    learned = AutoModelForCausalLM.from_pretrained(tmp_path / "64" / "model").state_dict()
    known = AutoModelForCausalLM.from_pretrained(base).state_dict()
    held = total = 0.0
    for name, weight in known.items():
        change = learned[name] - weight
        assert bool(change.any()) == name.endswith("_proj.weight")
        sizes = torch.linalg.svdvals(change) if change.dim() == 2 else change.new_zeros(1)
        held, total = held + sizes[:4].square().sum().item(), total + sizes.square().sum().item()
    assert little.kept == pytest.approx(held / total, abs=1e-3)  # no matrices of that rank could hold more
    assert json.loads((little.adapter / "training.json").read_text())["result"]["kept"] == little.kept
    assert (tmp_path / "64" / "model" / "tokenizer.json").is_file()
    answer = json.loads((little.adapter / "adapter_config.json").read_text())
    assert (answer["r"], answer["peft_type"]) == (4, "LORA")


def test_a_stopped_training_of_all_weights_goes_on_and_ends_with_the_same_bytes(base: Path, tmp_path: Path) -> None:
    choices: dict[str, Any] = {"method": "full", "learning_rate": 0.003, "epochs": 2, "keep_epochs": True}
    whole, seen = run(base, tmp_path / "whole", **choices)
    count = len(seen)
    assert len(list((tmp_path / "whole").glob("epoch-*/adapter_config.json"))) == 2
    given: dict[str, Any] = {"base": base, "rows": rows(), "out": tmp_path / "run", "recipe": recipe(**choices)}
    steps: list[int] = []
    with pytest.raises(TrainingStopped):
        train(**given, on_progress=lambda p: steps.append(p.step), should_stop=lambda: len(steps) == count // 2)
    again = train(**given, on_progress=lambda _: None)
    assert again.resumed_from == count // 2
    assert sha256(again) == sha256(whole)
    assert again.kept == whole.kept
