"""TRL as the benchmarks set it up: on this machine's processors, from rows that are tokens already. TRL must be on PYTHONPATH."""

from typing import Any

import pyarrow
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig


def settings(out: str, *, batch: int, micro_batch: int, learning_rate: float, autocast: bool, **others: Any) -> SFTConfig:
    """Plain AdamW on the completions' tokens, `micro_batch` rows at once; `others` are SFTConfig's own."""
    return SFTConfig(
        output_dir=out + ".trl",
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=batch // micro_batch,
        learning_rate=learning_rate,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=autocast,
        fp16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},  # they are tokens already
        completion_only_loss=True,
        report_to="none",
        save_strategy="no",
        dataloader_pin_memory=False,
        disable_tqdm=True,
        seed=0,
        **others,
    )


def lora(rank: int, alpha: float) -> LoraConfig:
    """In all linear layers, as stillroom's."""
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")


def dataset(rows: list[dict[str, Any]]) -> Dataset:
    """Of rows of `input_ids` and `labels`; made by itself it needs an older pyarrow."""
    return Dataset(pyarrow.Table.from_pylist(rows), fingerprint="rows")
