"""A step by the tree against plain training: same loss, same gradients, whatever is shared."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedModel, Qwen3Config

from distill import attention, recipe, step, student, tree
from distill.render import Example
from tests.models import tiny_llama

Rows = list[Example]


def ids(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(3, 400) for _ in range(length)]


def prompts(shared: int = 40, count: int = 7, seed: int = 0) -> Rows:
    """Rows of different lengths below one beginning."""
    rng = random.Random(seed)
    begin = ids(rng, shared)
    return [Example([*begin, *ids(rng, rng.randint(1, 9))], [*ids(rng, rng.randint(1, 12)), 2]) for _ in range(count)]


def few_shot() -> Rows:
    """Below one beginning three different ones, each with rows of its own."""
    rng = random.Random(1)
    begin, middles = ids(rng, 30), [ids(rng, 25) for _ in range(3)]
    return [Example([*begin, *middles[i % 3], *ids(rng, 4)], [*ids(rng, 3), 2]) for i in range(9)]


def session() -> Rows:
    """Turns, each beginning with all before it; one so long that its attention is cut into chunks."""
    rng = random.Random(2)
    said, rows = ids(rng, 50), []
    for turn in range(5):
        rows.append(Example(list(said), [*ids(rng, 6), 2]))
        said = [*said, *rows[-1].completion, *ids(rng, 700 if turn == 2 else 5)]
    return rows


def nothing_shared() -> Rows:
    rng = random.Random(3)
    return [Example(ids(rng, rng.randint(1, 90)), ids(rng, rng.randint(1, 9))) for _ in range(6)]


def twice() -> Rows:
    return [*prompts(20, 3), *prompts(20, 3), *session(), *nothing_shared()]


SHAPES = [prompts, few_shot, session, nothing_shared, twice]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


def learner(folder: Path, share: bool = True) -> PreTrainedModel:
    """In float32, with an adapter that already does something: fresh ones have no gradient for half of their matrices."""
    torch.manual_seed(1)
    pupil = student.load(folder, recipe.load().model_copy(update={"dtype": "float32", "share_prefix": share}))
    for name, parameter in pupil.learning.items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return pupil.model


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    model.zero_grad()
    return found


def plainly(folder: Path, rows: Rows, weights: list[float] | None = None) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The reference: every row alone, whole, through the model's own eager attention."""
    model = learner(folder, share=False)
    model.set_attn_implementation("eager")
    found = []
    for row, weight in zip(rows, weights or mean(rows), strict=True):
        logits = model(input_ids=torch.tensor([row.prompt + row.completion])).logits[0, len(row.prompt) - 1 : -1]
        loss = functional.cross_entropy(logits, torch.tensor(row.completion), reduction="sum")
        (weight * loss).backward()
        found.append(-loss.item())
    return found, gradients(model)


def mean(rows: Rows) -> list[float]:
    return [1 / sum(len(row.completion) for row in rows)] * len(rows)


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert len(wanted) == 2 * 2 * 7  # A and B of seven linear layers in two blocks
    for name, gradient in wanted.items():
        assert gradient.norm() > 0
        assert (found[name] - gradient).norm() / gradient.norm() <= 1e-4, name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("token_budget", [1, 60, 300, 10_000])
def test_the_tree_changes_neither_likelihoods_nor_gradients(folder: Path, shape: Callable[[], Rows], token_budget: int) -> None:
    model, rows = learner(folder), shape()
    assert model.config._attn_implementation == attention.NAME
    wanted_likelihoods, wanted = plainly(folder, rows)
    assert step.backward(model, rows, mean(rows), token_budget=token_budget) == pytest.approx(wanted_likelihoods, rel=1e-4)
    assert_same(gradients(model), wanted)


@pytest.mark.parametrize("shape", SHAPES)
def test_padded_batches_give_the_same(folder: Path, shape: Callable[[], Rows]) -> None:
    model, rows = learner(folder, share=False), shape()
    wanted_likelihoods, wanted = plainly(folder, rows)
    assert step.backward(model, rows, mean(rows), token_budget=300) == pytest.approx(wanted_likelihoods, rel=1e-4)
    assert_same(gradients(model), wanted)


@pytest.mark.parametrize("share", [True, False])
def test_each_row_counts_with_its_weight_even_a_negative_one(folder: Path, share: bool) -> None:
    model, rows = learner(folder, share), few_shot()
    weights = [0.5 - i / 7 for i in range(len(rows))]
    _, wanted = plainly(folder, rows, weights)
    step.backward(model, rows, weights, token_budget=100)
    assert_same(gradients(model), wanted)


def test_a_step_adds_to_the_gradients_that_are_there(folder: Path) -> None:
    model, rows = learner(folder), prompts()
    step.backward(model, rows, mean(rows), token_budget=100)
    once = gradients(model)
    for _ in range(2):
        step.backward(model, rows, mean(rows), token_budget=100)
    assert_same(gradients(model), {name: 2 * gradient for name, gradient in once.items()})


def test_frozen_weights_below_the_adapter_leave_the_shared_tokens_without_a_gradient(folder: Path) -> None:
    """Only the last layer's output projection learns: no key or value of the prefix depends on it."""
    model, rows = learner(folder), prompts()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name and "layers.1.mlp.down_proj" in name)
    step.backward(model, rows, mean(rows), token_budget=60)
    found = gradients(model)
    _, wanted = plainly(folder, rows)
    assert len(found) == 2
    for name, gradient in found.items():
        assert (gradient - wanted[name]).norm() / gradient.norm() <= 1e-4


@pytest.mark.parametrize("share", [True, False])
def test_judging_tells_likelihoods_and_which_answers_would_be_given(folder: Path, share: bool) -> None:
    model, rows = learner(folder, share), [*prompts(), *session()]
    likeliest = []
    for row in rows:  # an answer that greedy decoding gives
        written = list(row.prompt)
        for _ in range(3):
            written.append(int(learner(folder, share=False)(input_ids=torch.tensor([written])).logits[0, -1].argmax()))
        likeliest.append(Example(row.prompt, written[len(row.prompt) :]))
    judged = step.judge(model, [*rows, *likeliest], token_budget=100)
    wanted, _ = plainly(folder, [*rows, *likeliest])
    assert [each.likelihood for each in judged] == pytest.approx(wanted, rel=1e-4)
    assert [each.exact for each in judged] == [False] * len(rows) + [True] * len(rows)


DRAWN = st.tuples(st.lists(st.integers(3, 5), min_size=1, max_size=60), st.lists(st.integers(3, 4), min_size=1, max_size=20))


@settings(max_examples=150, deadline=None)
@given(st.lists(DRAWN, min_size=1, max_size=12))
def test_in_any_tree_each_token_sees_its_own_row_and_no_other(drawn: list[tuple[list[int], list[int]]]) -> None:
    rows = [Example(prompt, completion) for prompt, completion in drawn]
    roots = tree.grow(rows)
    flat = tree.flatten(roots)
    assert sum(node.size for node in roots) == len(flat.tokens) <= sum(len(row) - 1 for row in rows)
    sees = attention.sees(attention.plan(flat, torch.device("cpu")))
    labels: dict[int, list[tuple[int, int]]] = {}
    for label in flat.labels:
        labels.setdefault(label.row, []).append((label.place, label.token))
    for number, row in enumerate(rows):
        found = sorted(labels[number])
        assert [token for _, token in found] == row.completion
        for (place, _), end in zip(found, range(len(row.prompt), len(row)), strict=True):
            seen = sees[place].nonzero()[:, 0].tolist()
            assert [flat.tokens[i] for i in seen] == (row.prompt + row.completion)[:end]
            assert [flat.positions[i] for i in seen] == list(range(end))


def test_what_is_shared_for_long_enough_is_computed_once() -> None:
    rows = prompts(shared=40, count=7)
    assert sum(node.size for node in tree.grow(rows)) == sum(len(row) - 1 for row in rows) - 6 * 40
    assert sum(node.size for node in tree.grow(session())) == len(session()[-1]) - 1
    short = prompts(shared=2, count=3)
    assert len(tree.grow(short)) == 3  # two tokens are not worth a branching


def test_a_model_whose_layers_do_not_all_see_everything_is_not_computed_as_a_tree(folder: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    whole = MistralConfig(**sizes, num_key_value_heads=2, sliding_window=None)
    window = MistralConfig(**sizes, num_key_value_heads=2, sliding_window=8)
    assert step.can_share(AutoModelForCausalLM.from_config(whole))
    assert not step.can_share(AutoModelForCausalLM.from_config(window))
    assert step.can_share(AutoModelForCausalLM.from_config(Qwen3Config(**sizes, num_key_value_heads=2, head_dim=8)))
    assert step.can_share(learner(folder))


def test_a_model_with_one_query_head_a_key_head_and_another_size_gives_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = Qwen3Config(**sizes, num_attention_heads=2, num_key_value_heads=2, head_dim=24)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    rows = few_shot()
    wanted_likelihoods, wanted = plainly(tmp_path, rows)
    model = learner(tmp_path)
    assert model.config._attn_implementation == attention.NAME
    assert step.backward(model, rows, mean(rows), token_budget=100) == pytest.approx(wanted_likelihoods, rel=1e-4)
    assert_same(gradients(model), wanted)


def test_the_mask_that_a_gpu_is_given_is_what_the_blocks_come_to(folder: Path) -> None:
    """FlexAttention's mask on the CPU, uncompiled, against the blocks: a GPU's kernels are not had here, its mask is."""
    from torch.nn.attention.flex_attention import flex_attention

    flat = tree.flatten(tree.grow(few_shot()))
    plan = attention.plan(flat, torch.device("cpu"))
    q, k, v = torch.randn(3, 1, 2, len(flat.tokens), 16).unbind(0)
    blocks, _ = attention.attend(torch.nn.Module(), q, k, v, None, 0.25, plan)
    mask = attention.block_mask(plan, q.shape[2], k.shape[2], q.device)
    assert torch.allclose(flex_attention(q, k, v, block_mask=mask, scale=0.25).transpose(1, 2), blocks, atol=1e-5)


def test_the_adapters_layer_computes_what_pefts_own_computes(folder: Path) -> None:
    ours = learner(folder, share=False)
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
    rows = few_shot()
    near = learner(folder).to(torch.bfloat16)
    likelihoods, wanted = plainly(folder, rows)
    assert sum(step.backward(near, rows, mean(rows), token_budget=100)) == pytest.approx(sum(likelihoods), rel=0.01)
    for name, gradient in gradients(near).items():
        assert functional.cosine_similarity(gradient.float().flatten(), wanted[name].flatten(), dim=0) > 0.99, name
