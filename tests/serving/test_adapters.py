import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from serving.adapters import AdapterRefused, check, linear_modules
from store.prompts import Piece, Transform
from tests import models
from tests.serving import folders

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base, adapter): a tiny random Llama, and an adapter that PEFT made for it, of rank 4, in bfloat16."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    base = models.tiny_llama(folder / "base")
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    adapter = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).to(torch.bfloat16)
    adapter.save_pretrained(folder / "artifacts" / "adapter")
    return base, folder / "artifacts" / "adapter"


def looked_through(folder: Path, base: Path, **given: Any) -> None:
    asked = {"artifacts": folder.parent, "sha256": folders.hash_of(folder), "base_path": base, "max_rank": 8, **given}
    check(folder, **asked)


@pytest.fixture
def folder(tmp_path: Path, base: Path) -> Path:
    folders.adapter(tmp_path / "artifacts" / "a", base)
    return tmp_path / "artifacts" / "a"


def rewrite(folder: Path, name_part: str, change: Any) -> None:
    """Change the first matrix whose name has the part."""
    arrays = load_file(folder / WEIGHTS)
    name = next(each for each in arrays if name_part in each)
    arrays[name] = change(arrays[name])
    save_file(arrays, folder / WEIGHTS)


def test_an_adapter_that_peft_made_passes(tiny: tuple[Path, Path]) -> None:
    base, adapter = tiny
    looked_through(adapter, base)
    assert {name.rpartition(".")[2] for name in linear_modules(base)} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


def test_a_bfloat16_infinity_in_a_real_adapter_is_found(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = tiny
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in adapter.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    data = bytearray((broken / WEIGHTS).read_bytes())
    data[-2:] = (0x7F80).to_bytes(2, "little")  # the last value of the last matrix
    (broken / WEIGHTS).write_bytes(data)
    with pytest.raises(AdapterRefused, match="not finite"):
        looked_through(broken, base)


def test_a_folder_made_for_a_moved_base_of_the_same_name_passes(folder: Path, base: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / base.name
    moved.parent.mkdir()
    base.rename(moved)
    looked_through(folder, moved)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_pass(folder: Path, base: Path, dtype: Any) -> None:
    save_file({name: array.astype(dtype) for name, array in folders.matrices().items()}, folder / WEIGHTS)
    looked_through(folder, base)


def test_a_folder_outside_the_artifacts_is_refused(folder: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match="not in the artifacts folder"):
        looked_through(folder, base, artifacts=tmp_path / "other")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "link").symlink_to(folder)
    with pytest.raises(AdapterRefused, match="not in the artifacts folder"):
        check(tmp_path / "other" / "link", artifacts=tmp_path / "other", sha256="", base_path=base, max_rank=8)


@pytest.mark.parametrize("name", ["adapter_model.bin", "new_embeddings.pt", "optimizer.pkl", "code.py", "more.safetensors"])
def test_files_that_could_be_code_or_other_weights_are_refused(folder: Path, base: Path, name: str) -> None:
    (folder / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(AdapterRefused, match=name):
        looked_through(folder, base)


def test_a_link_or_a_folder_inside_is_refused(folder: Path, base: Path) -> None:
    (folder / "README.md").symlink_to("/etc/hostname")
    with pytest.raises(AdapterRefused, match="no ordinary file"):
        looked_through(folder, base)


def test_a_missing_folder_or_file_is_refused(folder: Path, base: Path) -> None:
    (folder / "adapter_config.json").unlink()
    with pytest.raises(AdapterRefused, match=r"has no adapter_config\.json"):
        looked_through(folder, base)
    with pytest.raises(AdapterRefused, match="there is no folder"):
        check(folder.parent / "gone", artifacts=folder.parent, sha256="", base_path=base, max_rank=8)


def test_another_hash_is_refused(folder: Path, base: Path) -> None:
    with pytest.raises(AdapterRefused, match="registered with"):
        looked_through(folder, base, sha256=hashlib.sha256(b"").hexdigest())


def test_a_rank_above_vllms_is_refused(folder: Path, base: Path) -> None:
    with pytest.raises(AdapterRefused, match="STILLROOM_MAX_LORA_RANK"):
        looked_through(folder, base, max_rank=1)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"peft_type": "IA3"}, "not of a LoRA"),
        ({"r": "2"}, "rank"),
        ({"lora_alpha": float("nan")}, "alpha"),
        ({"bias": "all"}, "biases"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"base_model_name_or_path": "someone/else"}, "was trained for 'someone/else'"),
        ({"base_model_name_or_path": ""}, "was trained for"),
        ({"target_modules": None}, "target_modules"),
    ],
)
def test_a_config_that_vllm_would_misread_is_refused(tmp_path: Path, base: Path, entry: dict[str, Any], why: str) -> None:
    folders.adapter(tmp_path / "a", base, **entry)
    with pytest.raises(AdapterRefused, match=why):
        looked_through(tmp_path / "a", base)


@pytest.mark.parametrize("content", ["", "[]", "{", "\xff"])
def test_a_config_that_is_none_is_refused(folder: Path, base: Path, content: str) -> None:
    (folder / "adapter_config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(AdapterRefused):
        looked_through(folder, base)


def test_a_matrix_of_the_wrong_shape_is_refused(folder: Path, base: Path) -> None:
    rewrite(folder, "v_proj.lora_B", lambda array: array[:-1])
    with pytest.raises(AdapterRefused, match=r"v_proj\.lora_B\.weight has the shape \[7, 2\], and \[8, 2\] would fit"):
        looked_through(folder, base)


def test_a_rank_other_than_the_configs_is_refused(folder: Path, base: Path) -> None:
    save_file(folders.matrices(rank=4), folder / WEIGHTS)
    with pytest.raises(AdapterRefused, match="has the shape"):
        looked_through(folder, base)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(folder: Path, base: Path, value: float) -> None:
    rewrite(folder, "down_proj.lora_A", lambda array: np.where(np.arange(array.size).reshape(array.shape) == 5, value, array))
    with pytest.raises(AdapterRefused, match="not finite"):
        looked_through(folder, base)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", "no linear layer"),
        ("base_model.model.model.embed_tokens.lora_A.weight", "no linear layer"),
        ("base_model.model.lm_head.lora_A.weight", "no linear layer"),
        ("base_model.model.model.layers.0.self_attn.q_proj.weight", "not a LoRA matrix"),
    ],
)
def test_a_matrix_that_belongs_nowhere_is_refused(folder: Path, base: Path, name: str, why: str) -> None:
    save_file({**folders.matrices(), name: np.zeros((2, 16), np.float32)}, folder / WEIGHTS)
    with pytest.raises(AdapterRefused, match=why):
        looked_through(folder, base)


def test_half_a_pair_of_matrices_is_refused(folder: Path, base: Path) -> None:
    arrays = folders.matrices()
    arrays.pop(next(name for name in arrays if "lora_B" in name))
    save_file(arrays, folder / WEIGHTS)
    with pytest.raises(AdapterRefused, match="other half"):
        looked_through(folder, base)


def test_a_layer_that_the_config_names_and_that_has_no_matrices_is_refused(folder: Path, base: Path) -> None:
    arrays = {name: array for name, array in load_file(folder / WEIGHTS).items() if "v_proj" not in name}
    save_file(arrays, folder / WEIGHTS)
    with pytest.raises(AdapterRefused, match=r"no matrices for .*v_proj.*1 are missing"):
        looked_through(folder, base)


def test_weights_that_are_empty_or_no_safetensors_are_refused(folder: Path, base: Path) -> None:
    save_file({}, folder / WEIGHTS)
    with pytest.raises(AdapterRefused, match="is empty"):
        looked_through(folder, base)
    for junk in (b"", b"PK\x03\x04 a zip", (2**40).to_bytes(8, "little") + b"{}"):
        (folder / WEIGHTS).write_bytes(junk)
        with pytest.raises(AdapterRefused, match="no safetensors file"):
            looked_through(folder, base)


def test_integers_are_refused(folder: Path, base: Path) -> None:
    save_file({name: array.astype(np.int32) for name, array in folders.matrices().items()}, folder / WEIGHTS)
    with pytest.raises(AdapterRefused, match="type I32"):
        looked_through(folder, base)


def test_a_base_in_several_files_is_read_whole(tmp_path: Path, base: Path) -> None:
    arrays = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    for number, (name, array) in enumerate(arrays.items()):
        save_file({name: array}, base / f"model-{number}.safetensors")
    assert set(linear_modules(base)) == {
        *("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj", "model.layers.0.mlp.down_proj")
    }
    folders.adapter(tmp_path / "a", base)
    looked_through(tmp_path / "a", base)


def test_neither_the_worker_nor_what_admin_imports_loads_torch() -> None:
    code = "import json, sys, serving.worker; print(json.dumps(['torch' in sys.modules, 'transformers' in sys.modules]))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert json.loads(said) == [False, False]
    code = "import json, sys, serving.rollout, serving.vllm; print(json.dumps('numpy' in sys.modules))"
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) is False


def test_where_all_files_hashes_are_known_no_other_file_and_no_change_passes(folder: Path, base: Path) -> None:
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    (folder / "README.md").write_text("the card, which may change")
    looked_through(folder, base, files=files)
    (folder / "more.json").write_text("{}")
    with pytest.raises(AdapterRefused, match=r"more\.json was not there"):
        looked_through(folder, base, files=files)
    (folder / "more.json").unlink()
    with pytest.raises(AdapterRefused, match=r"gone\.json is missing"):
        looked_through(folder, base, files={**files, "gone.json": "0"})
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 400}))  # would load, and say other things
    with pytest.raises(AdapterRefused, match=r"adapter_config\.json has the hash"):
        looked_through(folder, base, files=files)


def test_the_transform_must_be_the_one_it_was_registered_with(folder: Path, base: Path) -> None:
    transform = Transform((Piece("system", ("Sort the ticket.",)),)).dump()
    with pytest.raises(AdapterRefused, match="is not the transform"):
        looked_through(folder, base, transform=transform)
    (folder / "transform.json").write_text(json.dumps(transform))
    looked_through(folder, base, transform=transform)
    with pytest.raises(AdapterRefused, match="is not the transform"):
        looked_through(folder, base)
    (folder / "transform.json").write_text(json.dumps({**transform, "version": 2}))
    with pytest.raises(AdapterRefused, match="not known here"):
        looked_through(folder, base, transform={**transform, "version": 2})
