"""How the wheel is turned on this machine: wiring of the distill room."""

from pathlib import Path

from pydantic import Field, SecretStr

from store.settings import StoreSettings


class DistillSettings(StoreSettings):
    """Read from STILLROOM_* environment variables."""

    recipe: Path | None = Field(None, description="Recipe TOML of the trainings. Default: the one that comes with stillroom.")
    teacher_url: str = Field("https://api.openai.com/v1", description="Base URL of the teacher's API.")
    teacher_key: SecretStr | None = Field(None, description="The operator's key: with it the gate can ask the teacher again.")
    teachers: Path | None = Field(None, description="TOML file of several teachers, by model.")
    reask: bool = Field(
        True, description="Ask the teacher twice again on the gate's rows when there is a key: its own noise floor."
    )
    reask_budget: int = Field(2000, ge=0, description="At most this many repeated questions to the teacher an evaluation.")
    estimate: bool = Field(
        True, description="Say what a training will take before it begins; measured by a few steps where no earlier one tells."
    )
    max_lora_rank: int = Field(8, ge=1, description="A search tries no higher rank: serving refuses such adapters.")
    compute_usd_hour: float = Field(
        0.0, ge=0, description="What an hour of the machine that trains and serves costs, for estimates."
    )
    tick_seconds: float = Field(10.0, gt=0, description="How often each task is looked at.")
    lease_seconds: float = Field(30.0, gt=1, description="A turn whose process died is taken up by another after this long.")
    eval_concurrency: int = Field(32, ge=1, description="Questions to the student at once during an evaluation.")
    eval_timeout: float = Field(120.0, gt=0, description="Seconds for one answer of the student; longer counts as none.")
    stage_timeout: float = Field(900.0, gt=0, description="Seconds to wait for serving to load a candidate.")
    trainers: int = Field(1, ge=1, description="Processes that train a student together; on a machine with GPUs, one a GPU.")
    trainer_processors: int = Field(1, ge=1, description="Processors that each of them is given on a Ray cluster.")
    ray_address: str | None = Field(
        None,
        description="Ray cluster that trains: HOST:PORT, or ray://HOST:PORT from outside. The home folder must be shared with it.",
    )
