"""The student in training: a base model, and what of it learns."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners import lora
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from distill import attention, step
from distill.recipe import BadRecipe, Recipe

OVERSAMPLED = 8  #: directions that the randomised SVD looks at beside those that it gives
POWERS = 4  #: its iterations


@dataclass(frozen=True)
class Student:
    """A base model of which some weights learn, in eval mode: nothing random in it."""

    model: PreTrainedModel  #: to run
    learning: dict[str, torch.nn.Parameter]  #: in float32
    adapter: PeftModel | None  #: PEFT's hold of the same; None where the weights themselves learn

    def weights(self) -> dict[str, torch.Tensor]:
        """What has been learned so far; a copy."""
        return {name: parameter.detach().clone() for name, parameter in self.learning.items()}

    @torch.no_grad()
    def take(self, weights: dict[str, torch.Tensor]) -> None:
        """Go on from what `weights` gave."""
        for name, value in weights.items():
            self.learning[name].copy_(value)

    def save(self, folder: Path, base: Path) -> None:
        """Write what PEFT and vLLM load as an adapter of the model folder `base`."""
        assert self.adapter is not None, "weights are no adapter: save the student that serves them"
        self.adapter.peft_config["default"].base_model_name_or_path = str(base)
        self.adapter.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def load(base: Path, recipe: Recipe) -> Student:
    """A student that has learned nothing yet. Its first weights are drawn from torch's generator. Raises BadRecipe."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _quantised(base, recipe, device) if recipe.method == "qlora" else _plain(base, recipe, device)
    if recipe.share_prefix and step.can_share(model):
        model.set_attn_implementation(attention.NAME)
    model.eval()
    if recipe.method == "full":
        return Student(model, _loosen(model), None)
    kinds = {type(module) for _, module in _linear(model)}
    names = sorted({name.rpartition(".")[2] for name, _ in _linear(model)})
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=names, task_type="CAUSAL_LM")
    config._register_custom_module(dict.fromkeys(kinds, LoraLinear))
    adapter = get_peft_model(model, config)
    adapter.eval()
    return Student(model, {name: p for name, p in adapter.named_parameters() if p.requires_grad}, adapter)


def as_served(pupil: Student, base: Path, recipe: Recipe) -> tuple[Student, float | None]:
    """The student that vLLM will run: LoRA matrices on the base model's own weights.

    Where all weights have learned, the matrices are the best of their rank to stand for the change of each (truncated SVD: Eckart
    and Young 1936, computed as in Halko et al. 2011, arXiv 0909.4061); then also the share of the change's squared norm that they
    hold, else None.
    """
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        served = load(base, recipe.model_copy(update={"method": "lora"}))
        if pupil.adapter is None:
            return served, _extract(pupil, served)
    served.take(pupil.weights())
    return served, None


def save_whole(pupil: Student, folder: Path, base: Path) -> None:
    """Write a student whose weights themselves have learned as a model folder, in the base model's type."""
    model = AutoModelForCausalLM.from_pretrained(base)
    unknown = model.load_state_dict(pupil.weights(), strict=False).unexpected_keys
    assert not unknown, unknown
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def fast_dtype(device: str) -> torch.dtype:
    """bfloat16 where the device computes fast with it, else float32."""
    fast = torch.cuda.is_bf16_supported() if device == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


class LoraLinear(lora.Linear):  # type: ignore[misc]
    """x W' + x A' B' alpha / r, as PEFT computes it, in the type of x.

    PEFT casts every x to the adapter's float32 and the product back; casting the two small matrices instead makes a
    bfloat16 layer a third faster. The matrices themselves, their gradients and the optimizer's state stay float32.
    """

    def forward(self, x: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        (name,) = self.active_adapters
        down, up, scale = self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        rows = x.flatten(0, -2)
        if type(self.base_layer) is torch.nn.Linear and self.base_layer.bias is None:
            out = _Low.apply(rows, self.base_layer.weight, down, up, scale)
        else:
            low = rows @ down.to(x.dtype).t()
            out = torch.addmm(self.base_layer(rows), low, (up * scale).to(x.dtype).t())
        return out.view(*x.shape[:-1], -1)


class _Low(torch.autograd.Function):
    """The layer and its adapter in one: both ways add into what is there, which saves a tenth of a step's processor time."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, fixed: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
        down, up = down.to(x.dtype), (up * scale).to(x.dtype)
        low = x @ down.t()
        ctx.save_for_backward(x, fixed, low, down, up)
        ctx.scale = scale
        return (x @ fixed.t()).addmm_(low, up.t())

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, fixed, low, down, up = ctx.saved_tensors
        back = grad @ up
        given = (grad @ fixed).addmm_(back, down) if ctx.needs_input_grad[0] else None
        return given, None, (back.t() @ x).float(), (grad.t() @ low).float().mul_(ctx.scale), None


class Loose(torch.nn.Module):
    """A linear layer whose weight learns: kept in float32, where small steps are not lost, and computed with in the type of x."""

    def __init__(self, fixed: torch.nn.Linear) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(fixed.weight.detach().float())
        self.bias = fixed.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight.to(x.dtype), self.bias)


def _plain(base: Path, recipe: Recipe, device: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=_dtype(recipe, device)).to(device)
    return model


def _quantised(base: Path, recipe: Recipe, device: str) -> PreTrainedModel:
    """The base model with its linear layers in 4 bits (NF4, the scales quantised too: Dettmers et al. 2023, arXiv 2305.14314)."""
    try:
        import bitsandbytes
        from transformers import BitsAndBytesConfig
    except ImportError as error:
        raise BadRecipe('method = "qlora" needs the package bitsandbytes: install stillroom with its extra "qlora"') from error
    dtype = _dtype(recipe, device)
    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, quantization_config=four, device_map={"": device}
    )
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            # On a CPU with bfloat16 it would, for good, turn to weights that no gradient goes through, the first time it sees an x
            # without one.
            module.support_avx512bf16_for_cpu = False
    return model


def _linear(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Linear]]:
    """The linear layers by name, but for the head; in 4 bits or not."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is not head and (type(module) is torch.nn.Linear or type(module).__name__ == "Linear4bit"):
            yield name, module


def _loosen(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """Let the weights of the linear layers learn and nothing else; what learns, by its name in the model."""
    model.requires_grad_(False)
    learning = {}
    for name, fixed in list(_linear(model)):
        loose = Loose(fixed)
        model.set_submodule(name, loose)
        learning[f"{name}.weight"] = loose.weight
    return learning


@torch.no_grad()
def _extract(pupil: Student, served: Student) -> float:
    """Set the served student's LoRA matrices to what the pupil's weights have changed by; the share of it that they hold."""
    held = total = 0.0
    for name, weight in pupil.learning.items():
        layer: Any = served.model.get_submodule(name.removesuffix(".weight"))
        change = weight - layer.base_layer.weight.float()
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        rank = min(down.shape[0], *change.shape)
        left, sizes, right = torch.svd_lowrank(change, q=min(rank + OVERSAMPLED, *change.shape), niter=POWERS)
        root = sizes[:rank].sqrt()
        down.zero_()[:rank] = (right[:, :rank] * root).t() / layer.scaling["default"]
        up.zero_()[:, :rank] = left[:, :rank] * root
        held += sizes[:rank].square().sum().item()
        total += change.square().sum().item()
    return held / total if total else 1.0


def _dtype(recipe: Recipe, device: str) -> torch.dtype:
    return fast_dtype(device) if recipe.dtype == "auto" else getattr(torch, recipe.dtype)
