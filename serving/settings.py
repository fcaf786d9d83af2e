"""How the student is served on this machine: wiring of the serving room."""

import shlex
import socket
from pathlib import Path

from pydantic import Field, field_validator

from store.settings import StoreSettings


class ServingSettings(StoreSettings):
    """Read from STILLROOM_* environment variables."""

    student_url: str | None = Field(
        None, description="URL of a vLLM server to use, without /v1. Default: stillroom starts one and looks after it."
    )
    base_model: str = Field("smollm2", description="The student's base model: smollm2, a model folder, or a Hugging Face id.")
    models_dir: Path | None = Field(None, description="Where base models are prepared. Default: `models` in the home folder.")
    vllm_args: str = Field("", description="More arguments for vLLM, as on a command line; they win over stillroom's own.")
    max_loras: int = Field(8, ge=1, description="Adapters that can answer in the same batch; any number can be loaded.")
    max_lora_rank: int = Field(8, description="Adapters of a higher rank are refused.")
    max_model_len: int = Field(4096, ge=64, description="Tokens of a prompt and its answer together.")
    kv_cache_gb: int = Field(1, ge=1, description="Memory for attention keys and values, in GiB, where vLLM runs on the CPU.")
    serving_tick: float = Field(1.0, gt=0, description="Seconds between two looks at what should be loaded and what is.")
    engine_start_timeout: float = Field(600.0, gt=0, description="Seconds that vLLM may take to start.")
    engine_id: str = Field(
        default_factory=lambda: f"engine-{socket.gethostname()}"[:40], description="Name of this machine's engine; one each."
    )

    @field_validator("max_lora_rank")
    @classmethod
    def _known_to_vllm(cls, rank: int) -> int:
        if rank not in {1, 8, 16, 32, 64, 128, 256, 320, 512}:
            raise ValueError("vLLM takes 1, 8, 16, 32, 64, 128, 256, 320 or 512")
        return rank

    @field_validator("vllm_args")
    @classmethod
    def _splittable(cls, text: str) -> str:
        shlex.split(text)
        return text

    @field_validator("student_url")
    @classmethod
    def _without_v1(cls, url: str | None) -> str | None:
        return url.rstrip("/").removesuffix("/v1") if url else None

    @property
    def models_path(self) -> Path:
        """Where base models are prepared, absolute."""
        return (self.models_dir or self.home_path / "models").expanduser().resolve()
