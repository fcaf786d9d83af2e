import os
import signal
from pathlib import Path

import pytest
from pydantic import ValidationError

from serving import command
from serving.settings import ServingSettings


def option(arguments: list[str], name: str) -> str:
    return arguments[len(arguments) - 1 - arguments[::-1].index(name) + 1]


def test_vllm_is_started_on_the_loopback_with_room_for_adapters_and_tools(settings: ServingSettings, base: Path) -> None:
    built = command.build(settings, base)
    assert built.arguments[1:3] == ["-m", "serving.launch"]
    assert option(built.arguments, "--host") == "127.0.0.1"
    assert built.url == f"http://127.0.0.1:{option(built.arguments, '--port')}"
    assert option(built.arguments, "--served-model-name") == settings.base_model
    assert option(built.arguments, "--max-lora-rank") == "8"
    assert "--enable-auto-tool-choice" in built.arguments
    assert built.environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert built.environment["HF_HUB_OFFLINE"] == "1"


def test_on_the_cpu_adapters_go_through_the_worker_of_ours_on_the_layers_that_have_one(
    settings: ServingSettings, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert command.on_cpu()  # the tests' environment
    built = command.build(settings.model_copy(update={"kv_cache_gb": 3}), base)
    targets = built.arguments[built.arguments.index("--lora-target-modules") + 1 :]
    assert targets == ["down_proj", "q_proj", "v_proj"]
    assert option(built.arguments, "--worker-cls") == "serving.cpu.Worker"
    assert built.environment["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert built.environment["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) - 1))
    assert str(Path(command.__file__).parents[1]) in built.environment["PYTHONPATH"]
    assert built.death_signal == signal.SIGKILL


def test_the_context_is_never_longer_than_the_model_knows(settings: ServingSettings, base: Path) -> None:
    assert option(command.build(settings, base).arguments, "--max-model-len") == "512"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_base_folder_is_told_with_what_to_do(settings: ServingSettings, base: Path, name: str) -> None:
    (base / name).write_bytes((base / name).read_bytes()[:20])
    with pytest.raises(command.BaseUnavailable, match=r"is damaged: .*remove it, and it is prepared again"):
        command.build(settings, base)


def test_a_persons_own_arguments_come_last_and_so_win(settings: ServingSettings, base: Path) -> None:
    own = settings.model_copy(update={"vllm_args": "--dtype float32 --chat-template '/a folder/t.jinja'"})
    arguments = command.build(own, base).arguments
    assert option(arguments, "--dtype") == "float32"
    assert arguments[-1] == "/a folder/t.jinja"


def test_every_start_has_a_port_of_its_own(settings: ServingSettings, base: Path) -> None:
    assert command.build(settings, base).url != command.build(settings, base).url


@pytest.mark.parametrize("wrong", [{"max_lora_rank": 7}, {"vllm_args": "--x 'unfinished"}, {"kv_cache_gb": 0}])
def test_settings_that_vllm_would_stumble_over_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ServingSettings(**wrong)


def test_a_students_url_may_end_in_v1() -> None:
    assert ServingSettings(student_url="http://gpu:8000/v1/").student_url == "http://gpu:8000"


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in ServingSettings.model_fields.items() if not field.description] == []
