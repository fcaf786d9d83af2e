"""The student in training: a frozen base model with LoRA matrices in its linear layers."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners import lora
from transformers import AutoModelForCausalLM, PreTrainedModel

from distill import prefix
from distill.recipe import Recipe


def load(base: Path, recipe: Recipe) -> tuple[PreTrainedModel, PeftModel]:
    """The model to run, its adapter in place, and PEFT's hold of the same, which saves the adapter. Both in eval mode."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=_dtype(recipe, device)).to(device)
    if device == "cpu" and prefix.can_group(model):
        model.set_attn_implementation(prefix.GROUPED)
    head = model.get_output_embeddings()
    linear = {name.rpartition(".")[2] for name, m in model.named_modules() if type(m) is torch.nn.Linear and m is not head}
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=sorted(linear), task_type="CAUSAL_LM")
    config._register_custom_module({torch.nn.Linear: LoraLinear})
    adapter = get_peft_model(model, config)
    adapter.eval()  # nothing random: no dropout anywhere
    return model, adapter


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
