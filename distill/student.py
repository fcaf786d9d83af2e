"""The student in training: a base model, and what of it learns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners import lora
from transformers import AutoModelForCausalLM, PreTrainedModel

from distill import attention, step
from distill.recipe import Recipe


@dataclass(frozen=True)
class Student:
    """A frozen base model with LoRA matrices in its linear layers, in eval mode: nothing random in it."""

    model: PreTrainedModel  #: to run
    adapter: PeftModel  #: PEFT's hold of the same
    learning: dict[str, torch.nn.Parameter]

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
        self.adapter.peft_config["default"].base_model_name_or_path = str(base)
        self.adapter.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def load(base: Path, recipe: Recipe) -> Student:
    """A student that has learned nothing yet. Its first weights are drawn from torch's generator."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=_dtype(recipe, device)).to(device)
    if recipe.share_prefix and step.can_share(model):
        model.set_attn_implementation(attention.NAME)
    head = model.get_output_embeddings()
    linear = {name.rpartition(".")[2] for name, m in model.named_modules() if type(m) is torch.nn.Linear and m is not head}
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=sorted(linear), task_type="CAUSAL_LM")
    config._register_custom_module({torch.nn.Linear: LoraLinear})
    adapter = get_peft_model(model, config)
    adapter.eval()
    return Student(model, adapter, {name: p for name, p in adapter.named_parameters() if p.requires_grad})


class LoraLinear(lora.Linear):  # type: ignore[misc]
    """x W' + x A' B' alpha / r, as PEFT computes it, in the type of x.

    PEFT casts every x to the adapter's float32 and the product back; casting the two small matrices instead makes a
    bfloat16 layer a third faster. The matrices themselves, their gradients and the optimizer's state stay float32.
    """

    def forward(self, x: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        (name,) = self.active_adapters
        down = self.lora_A[name].weight.to(x.dtype)
        up = (self.lora_B[name].weight * self.scaling[name]).to(x.dtype)
        base = self.base_layer(x)
        return torch.addmm(base.flatten(0, -2), x.flatten(0, -2) @ down.t(), up.t()).view_as(base)


def _dtype(recipe: Recipe, device: str) -> torch.dtype:
    if recipe.dtype == "auto":
        fast = torch.cuda.is_bf16_supported() if device == "cuda" else torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if recipe.dtype == "bfloat16" else torch.float32
