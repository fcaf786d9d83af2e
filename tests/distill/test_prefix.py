"""The shared prefix against plain training: same loss, same gradients."""

import random
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedModel

from distill import lora, prefix, recipe
from distill.render import Example
from tests.models import tiny_llama


def ids(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(3, 400) for _ in range(length)]


def rows(shared: int, count: int = 7, seed: int = 0) -> list[Example]:
    """`count` rows of different lengths whose prompts have exactly `shared` first tokens in common."""
    rng = random.Random(seed)
    begin = ids(rng, shared)
    return [Example([*begin, 400 + i, *ids(rng, rng.randint(1, 9))], [*ids(rng, rng.randint(1, 12)), 2]) for i in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


def student(folder: Path, attention: str | None = None) -> PreTrainedModel:
    """In float32, with an adapter that already does something: fresh ones have no gradient for half of their matrices."""
    torch.manual_seed(1)
    model, adapter = lora.load(folder, recipe.load().model_copy(update={"dtype": "float32"}))
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    if attention:
        model.set_attn_implementation(attention)
    return model


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    model.zero_grad()
    return found


def plainly(model: PreTrainedModel, examples: list[Example]) -> tuple[float, dict[str, torch.Tensor]]:
    """The reference: every row alone, whole, through the model's own forward."""
    total = sum(len(e.completion) for e in examples)
    loss = torch.zeros(())
    for e in examples:
        logits = model(input_ids=torch.tensor([e.prompt + e.completion])).logits[0, len(e.prompt) - 1 : -1]
        loss = loss + functional.cross_entropy(logits, torch.tensor(e.completion), reduction="sum") / total
    loss.backward()
    return loss.item(), gradients(model)


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert len(wanted) == 2 * 2 * 7  # A and B of seven linear layers in two blocks
    for name, gradient in wanted.items():
        assert gradient.norm() > 0
        assert (found[name] - gradient).norm() / gradient.norm() <= 1e-4, name


@pytest.mark.parametrize("attention", [prefix.GROUPED, "sdpa", "eager"])
@pytest.mark.parametrize("token_budget", [1, 60, 10_000])
def test_sharing_the_prefix_changes_neither_loss_nor_gradients(folder: Path, attention: str, token_budget: int) -> None:
    model, examples = student(folder, attention), rows(shared=40)
    wanted_loss, wanted = plainly(student(folder, "eager"), examples)
    loss = prefix.loss_and_backward(model, examples, prefix=40, token_budget=token_budget)
    assert loss == pytest.approx(wanted_loss, rel=1e-4)
    assert_same(gradients(model), wanted)


def test_rows_in_padded_batches_without_a_prefix_give_the_same_too(folder: Path) -> None:
    model, examples = student(folder), rows(shared=0)
    wanted_loss, wanted = plainly(model, examples)
    assert prefix.loss_and_backward(model, examples, prefix=0, token_budget=60) == pytest.approx(wanted_loss, rel=1e-4)
    assert_same(gradients(model), wanted)


def test_a_step_adds_to_the_gradients_that_are_there(folder: Path) -> None:
    model, examples = student(folder), rows(shared=20)
    prefix.loss_and_backward(model, examples, prefix=20, token_budget=100)
    once = gradients(model)
    for _ in range(2):
        prefix.loss_and_backward(model, examples, prefix=20, token_budget=100)
    assert_same(gradients(model), {name: 2 * gradient for name, gradient in once.items()})


def test_a_single_row_can_share_with_itself(folder: Path) -> None:
    model, examples = student(folder), rows(shared=30, count=1)
    wanted_loss, wanted = plainly(model, examples)
    length = prefix.shared_prefix(examples)
    assert length == len(examples[0].prompt) - 1
    assert prefix.loss_and_backward(model, examples, prefix=length, token_budget=100) == pytest.approx(wanted_loss, rel=1e-4)
    assert_same(gradients(model), wanted)


def test_frozen_weights_below_the_adapter_leave_the_prefix_without_a_gradient(folder: Path) -> None:
    """Only the last layer's output projection learns: no key or value of the prefix depends on it."""
    model, examples = student(folder), rows(shared=30)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name and "layers.1.mlp.down_proj" in name)
    _, wanted = plainly(model, examples)
    prefix.loss_and_backward(model, examples, prefix=30, token_budget=100)
    found = gradients(model)
    assert len(found) == 2
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() / gradient.norm() <= 1e-4


def test_the_shared_prefix_is_what_all_prompts_begin_with() -> None:
    assert prefix.shared_prefix([]) == 0
    assert prefix.shared_prefix(rows(shared=0)) == 0
    assert prefix.shared_prefix(rows(shared=33)) == 33
    assert prefix.shared_prefix([*rows(shared=33), Example([0, 1], [2])]) == 0


def test_the_shared_prefix_leaves_every_prompt_a_token_of_its_own() -> None:
    same = Example([5, 6, 7, 8], [2])
    assert prefix.shared_prefix([same, same]) == 3
    assert prefix.shared_prefix([same, Example([5, 6], [2])]) == 1
    assert prefix.shared_prefix([Example([5], [2]), same]) == 0


def test_models_that_do_not_keep_all_keys_are_not_cut(folder: Path) -> None:
    assert prefix.can_share(student(folder))
    sliding = MistralConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        sliding_window=4,
    )
    assert not prefix.can_share(AutoModelForCausalLM.from_config(sliding))


def test_the_adapters_layer_computes_what_pefts_own_computes(folder: Path) -> None:
    ours = student(folder)
    peft = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    theirs = peft.get_base_model()
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.tensor([ids(random.Random(3), 50)])
    for model in (ours, theirs):
        model(input_ids=tokens).logits.square().mean().backward()
    assert torch.allclose(ours(input_ids=tokens).logits, theirs(input_ids=tokens).logits, atol=1e-5)
    assert_same(gradients(ours), gradients(theirs))


def test_bfloat16_stays_near_float32(folder: Path) -> None:
    examples = rows(shared=40)
    exact, near = student(folder), student(folder).to(torch.bfloat16)
    wanted_loss, wanted = plainly(exact, examples)
    assert prefix.loss_and_backward(near, examples, prefix=40, token_budget=100) == pytest.approx(wanted_loss, rel=0.01)
    for name, gradient in gradients(near).items():
        assert functional.cosine_similarity(gradient.float().flatten(), wanted[name].flatten(), dim=0) > 0.99, name
