"""An adapter folder is looked through before vLLM may see it.

vLLM loads any path it is told, unpickles `.bin` files, and accepts matrices of the wrong shape without a word.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from store import prompts

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
HARMLESS = {".json", ".md", ".txt", ".jinja"}
TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
#: Config switches that change what the matrices mean and that vLLM does not know.
UNKNOWN_TO_VLLM = (
    "modules_to_save", "use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora",
    "rank_pattern", "alpha_pattern", "trainable_token_indices", "target_parameters", "fan_in_fan_out",
)  # fmt: skip
DTYPES = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
BF16_EXPONENT = 0x7F80
Shape = tuple[int, ...]


class AdapterRefused(Exception):
    """The folder must not be loaded; the message says why."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file, unread."""

    dtype: str
    shape: Shape
    begin: int  #: bytes from the file's beginning
    end: int


def check(
    folder: Path,
    *,
    artifacts: Path,
    sha256: str,
    base_path: Path,
    max_rank: int,
    files: Mapping[str, str] | None = None,
    transform: Any = None,
) -> None:
    """Look through a PEFT folder. Raises AdapterRefused; OSError if it cannot be read now, which says nothing of the adapter.

    It must lie in `artifacts`, hold nothing that could be code, have the hash it was registered with, be a plain LoRA of this base
    model with a rank vLLM was started for, and have finite matrices that fit the base model's, for every layer its config names.
    Where the hashes of all its `files` are known, it must have these and no others; its `transform`, of which the proxy knows from
    the adapter's row, must be the one it was trained with.
    """
    try:
        _check_folder(folder, artifacts)
        config = json.loads((folder / CONFIG).read_bytes())
        _check_hash(folder / WEIGHTS, sha256)
        if files:
            _check_files(folder, files)
        _check_transform(folder / prompts.TRANSFORM, transform)
        rank = _check_config(config, base_path, max_rank)
        modules = linear_modules(base_path)
        _check_tensors(folder / WEIGHTS, modules, rank)
        _check_complete(folder / WEIGHTS, modules, config)
    except ValueError as error:  # JSON or UTF-8
        raise AdapterRefused(f"{folder / CONFIG} is no JSON: {error}") from error


def linear_modules(base_path: Path) -> dict[str, Shape]:
    """Name and shape (out, in) of the base model's linear layers but its head: what PEFT calls all-linear. Raises OSError."""
    weights: dict[str, Shape] = {}
    for file in sorted(base_path.glob("*.safetensors")):
        weights |= {name.removesuffix(".weight"): t.shape for name, t in _tensors(file).items() if name.endswith(".weight")}
    not_linear = re.compile(r"(^|[._])(lm_head|embed\w*|wte|wpe)($|[._])")
    return {name: shape for name, shape in weights.items() if len(shape) == 2 and not not_linear.search(name)}


def _check_folder(folder: Path, artifacts: Path) -> None:
    inside = artifacts.resolve()
    if not folder.resolve().is_relative_to(inside) or folder.resolve() == inside:
        raise AdapterRefused(f"{folder} is not in the artifacts folder {inside}")
    if not folder.is_dir():
        raise AdapterRefused(f"there is no folder {folder}")
    names = {entry.name for entry in folder.iterdir()}
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink() or not entry.is_file():
            raise AdapterRefused(f"{entry.name} is no ordinary file")
        if entry.name != WEIGHTS and entry.suffix not in HARMLESS:
            raise AdapterRefused(f"{entry.name} does not belong in an adapter folder: weights come as {WEIGHTS} only")
    for name in (CONFIG, WEIGHTS):
        if name not in names:
            raise AdapterRefused(f"{folder} has no {name}")


def _check_hash(file: Path, sha256: str) -> None:
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise AdapterRefused(f"{file.name} has the hash {found[:12]}..., not the {sha256[:12]}... it was registered with")


def _check_files(folder: Path, files: Mapping[str, str]) -> None:
    """All but the weights, which have been looked at, and the card, which is only for people."""
    there = {entry.name for entry in folder.iterdir()} - {CARD}
    for name in sorted({*there, *files}):
        if name not in files or name not in there:
            how = "was not there" if name in there else "is missing, and was there"
            raise AdapterRefused(f"{name} {how} when it was registered")
        if name != WEIGHTS:
            _check_hash(folder / name, files[name])


def _check_transform(file: Path, transform: Any) -> None:
    kept = json.loads(file.read_bytes()) if file.is_file() else None
    try:
        wanted = None if transform is None else prompts.read(transform)
        if wanted != (None if kept is None else prompts.read(kept)):
            raise AdapterRefused(f"{file.name} is not the transform that it was registered with")
    except prompts.BadTransform as error:
        raise AdapterRefused(f"what it must be shown is not known here: {error}") from error


def _check_config(config: Any, base_path: Path, max_rank: int) -> int:
    """The adapter's rank."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterRefused(f"{CONFIG} is not of a LoRA")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not np.isfinite(alpha):
        raise AdapterRefused(f"{CONFIG} has the rank {rank!r} and the alpha {alpha!r}")
    if rank > max_rank:
        raise AdapterRefused(
            f"its rank is {rank}, and vLLM was started for {max_rank}: set STILLROOM_MAX_LORA_RANK, then promote it again"
        )
    if config.get("bias", "none") != "none":
        raise AdapterRefused(f"it trains biases ({config['bias']}), which vLLM does not load")
    if unknown := [key for key in UNKNOWN_TO_VLLM if config.get(key)]:
        raise AdapterRefused(f"it uses {', '.join(unknown)}, which vLLM does not know")
    if not _same_base(str(config.get("base_model_name_or_path", "")), base_path):
        raise AdapterRefused(f"it was trained for {config.get('base_model_name_or_path')!r}, and the base model is {base_path}")
    return rank


def _same_base(named: str, base_path: Path) -> bool:
    """The same folder; or, where the named one is no more because the home folder has moved, one of the same name."""
    path = Path(named)
    return path.resolve() == base_path.resolve() if path.is_dir() else bool(named) and path.name == base_path.name


def _check_tensors(file: Path, modules: dict[str, Shape], rank: int) -> None:
    tensors = _tensors(file)
    if not tensors:
        raise AdapterRefused(f"{file.name} is empty")
    for name, tensor in tensors.items():
        matched = TENSOR.fullmatch(name)
        if matched is None:
            raise AdapterRefused(f"{name} is not a LoRA matrix")
        module, side = matched["module"], matched["side"]
        if module not in modules:
            raise AdapterRefused(f"{name} belongs to no linear layer of the base model")
        size_out, size_in = modules[module]
        fits = (rank, size_in) if side == "A" else (size_out, rank)
        if tensor.shape != fits:
            raise AdapterRefused(f"{name} has the shape {list(tensor.shape)}, and {list(fits)} would fit")
        if f"base_model.model.{module}.lora_{'B' if side == 'A' else 'A'}.weight" not in tensors:
            raise AdapterRefused(f"{name} lacks its other half")
        if tensor.dtype not in DTYPES:
            raise AdapterRefused(f"{name} has the type {tensor.dtype}")
        if not _finite(file, tensor):
            raise AdapterRefused(f"{name} has values that are not finite")


def _check_complete(file: Path, modules: dict[str, Shape], config: dict[str, Any]) -> None:
    """Each layer that the config names must have its matrices: vLLM would answer without those that are missing."""
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not targets:
        raise AdapterRefused(f"{CONFIG} does not list its target_modules")
    if config.get("layers_to_transform") or config.get("exclude_modules"):
        return  # some layers only, as it says
    named = {m["module"] for name in _tensors(file) if (m := TENSOR.fullmatch(name))}
    wanted = {module for module in modules if any(module == t or module.endswith(f".{t}") for t in targets)}
    if missing := sorted(wanted - named):
        raise AdapterRefused(f"it has no matrices for {missing[0]}, which its target_modules name ({len(missing)} are missing)")


def _finite(file: Path, tensor: Tensor) -> bool:
    values = np.fromfile(file, DTYPES[tensor.dtype], count=int(np.prod(tensor.shape)), offset=tensor.begin)
    if tensor.dtype == "BF16":  # numpy has no such type: infinity and NaN have all bits of the exponent set
        return bool(np.all(values & BF16_EXPONENT != BF16_EXPONENT))
    return bool(np.isfinite(values).all())


def _tensors(file: Path) -> dict[str, Tensor]:
    """The file's header. Raises AdapterRefused if it is no well-formed safetensors file."""
    try:
        with safe_open(file, framework="numpy"):  # its own checks: lengths, overlaps, types
            pass
    except SafetensorError as error:
        raise AdapterRefused(f"{file.name} is no safetensors file: {error}") from error
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return {
        name: Tensor(t["dtype"], tuple(t["shape"]), 8 + length + t["data_offsets"][0], 8 + length + t["data_offsets"][1])
        for name, t in header.items()
    }
