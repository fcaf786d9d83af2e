"""How a student is trained: the choices of one experiment, read from a TOML file and copied into the run's row."""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

DEFAULT = Path(__file__).parent / "recipes" / "default.toml"


class BadRecipe(ValueError):
    """The recipe file is no recipe; the message names the file and what is wrong in it."""


class Recipe(BaseModel):
    """One training's choices. A recipe file that leaves one out gets the value of `recipes/default.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["lora", "qlora", "full"] = Field(
        description="What learns: LoRA matrices; the same on a base model in 4 bits; all weights of the linear layers, "
        "which want a learning_rate some 50 times smaller."
    )
    objective: Literal["sft", "dpo"] = Field(description="dpo: also prefer an answer to the one that a person replaced by it.")
    beta: float = Field(gt=0, description="DPO: how far the student may move away from where it began to prefer one answer.")
    strip: bool = Field(description="Learn without the long instructions, where the task's have been learned to be left out.")
    seed: int = Field(description="Of the adapter's first weights and of the order of rows.")
    epochs: int = Field(ge=1, description="How often every row is learned from.")
    patience: int = Field(
        ge=0, description="Stop after so many epochs without a lower loss on the validation rows, and keep the best; 0: never."
    )
    keep_epochs: bool = Field(description="Keep an adapter of each epoch, not only the last or the best: it can be judged later.")
    take_epoch: int = Field(
        ge=0, description="Stop after this epoch, and leave the adapter as it is then; 0: the best, or the last."
    )
    learning_rate: float = Field(gt=0, description="AdamW's, at its highest.")
    schedule: Literal["cosine", "linear", "constant"] = Field(description="How the learning rate falls after the warmup.")
    warmup: float = Field(ge=0, lt=1, description="Share of the steps in which it rises from zero.")
    rank: int = Field(ge=1, description="Of the LoRA matrices; vLLM's --max-lora-rank must allow it.")
    alpha: float = Field(gt=0, description="LoRA's scale is alpha / rank.")
    weight_decay: float = Field(ge=0, description="AdamW's.")
    clip: float = Field(gt=0, description="Largest norm of a step's gradient.")
    batch_rows: int = Field(ge=1, description="Rows a step.")
    token_budget: int = Field(ge=1, description="Tokens computed together; a larger step is computed in parts. Memory.")
    max_length: int = Field(ge=2, description="Longer rows, in tokens, are left out and counted.")
    keep_model: bool = Field(description="full: leave the whole model too, in `model/` beside the adapter.")
    share_prefix: bool = Field(description="Compute only once what a step's rows begin with alike.")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(description="Of the base model; auto: bfloat16 where it is fast.")
    checkpoint_seconds: float = Field(gt=0, description="How much work a killed training may lose.")

    def hash(self) -> str:
        """SHA-256 of the canonical JSON: the same choices give the same hash, whatever file they came from."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def load(path: Path | None = None) -> Recipe:
    """The recipe in a TOML (or .json) file, on top of the default one. Raises BadRecipe."""
    values = tomllib.loads(DEFAULT.read_text())
    try:
        if path is not None:
            values |= json.loads(path.read_text()) if path.suffix == ".json" else tomllib.loads(path.read_text())
        return Recipe.model_validate(values)
    except OSError as error:
        raise BadRecipe(f"recipe {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BadRecipe(f"recipe {path}: {problems}") from error
    except ValueError as error:
        raise BadRecipe(f"recipe {path} is not well-formed: {error}") from error
