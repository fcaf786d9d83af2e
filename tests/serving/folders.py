"""Model and adapter folders made of numpy arrays: what serving looks at, without torch."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Arrays = dict[str, NDArray[Any]]
HIDDEN, INNER, HEADS_KV = 16, 32, 8
TARGETS = ["q_proj", "v_proj", "down_proj"]


def base(folder: Path) -> Path:
    """A model folder with the weights of one Llama layer, as far as `serving` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {
        "model.embed_tokens": (64, HIDDEN),
        "model.norm": (HIDDEN,),
        "model.layers.0.self_attn.q_proj": (HIDDEN, HIDDEN),
        "model.layers.0.self_attn.v_proj": (HEADS_KV, HIDDEN),
        "model.layers.0.mlp.down_proj": (HIDDEN, INNER),
    }
    save_file({f"{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 512}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return folder


def matrices(rank: int = 2) -> Arrays:
    """LoRA matrices that fit `base`."""
    rng = np.random.default_rng(0)
    prefix = "base_model.model.model.layers.0"
    sizes = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.v_proj": (HEADS_KV, HIDDEN), "mlp.down_proj": (HIDDEN, INNER)}
    found: Arrays = {}
    for module, (size_out, size_in) in sizes.items():
        found[f"{prefix}.{module}.lora_A.weight"] = rng.normal(size=(rank, size_in)).astype(np.float32)
        found[f"{prefix}.{module}.lora_B.weight"] = rng.normal(size=(size_out, rank)).astype(np.float32)
    return found


def adapter(folder: Path, base_path: Path, arrays: Arrays | None = None, **config: Any) -> str:
    """Write an adapter folder; returns the hash of its weights. `config` replaces entries of adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(matrices() if arrays is None else arrays, folder / "adapter_model.safetensors")
    entries: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": TARGETS}
    entries["base_model_name_or_path"] = str(base_path)
    (folder / "adapter_config.json").write_text(json.dumps({**entries, **config}))
    return hash_of(folder)


def hash_of(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
