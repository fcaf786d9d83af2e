"""How the proxy is wired on this machine."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from proxy.spool import Durability
from store.settings import StoreSettings
from store.teachers import http_url


class ProxySettings(StoreSettings):
    """Read from STILLROOM_* environment variables."""

    model_config = SettingsConfigDict(hide_input_in_errors=True)  # the operator's key may be in it

    proxy_host: str = Field("127.0.0.1", description="Address the proxy listens on.")
    proxy_port: int = Field(8080, ge=0, le=65535, description="Port the proxy listens on; 0 takes a free one.")
    teacher_url: str = Field("https://api.openai.com/v1", description="The teacher's API; /v1/x goes to {teacher_url}/x.")
    teacher_key: SecretStr | None = Field(
        None, description="The operator's key: replaces every client's credentials. Without it each client's own key is forwarded."
    )
    require_key: bool = Field(
        False, description="Only requests with a key of stillroom's own (`stillroom keys add`) are let in; others get 401."
    )
    teachers: Path | None = Field(
        None, description="TOML file of several teachers, by model, and of prices. Default: the one at STILLROOM_TEACHER_URL."
    )
    connect_timeout: float = Field(10.0, gt=0, description="Seconds to wait for a connection to the teacher.")
    read_timeout: float = Field(600.0, gt=0, description="Seconds the teacher may be silent; there is no limit in total.")
    student_timeout: float = Field(
        30.0, gt=0, description="Seconds for a student's whole answer, or a stream's first text and each pause after it."
    )
    route_seconds: float = Field(1.0, gt=0, description="How often the routes are read from the database.")
    max_body_bytes: int = Field(
        100_000_000, ge=1, description="Largest body of a captured request (413 above) and largest answer that is captured."
    )
    workers: int = Field(1, ge=1, le=256, description="Processes that answer requests, each with one event loop.")
    durability: Durability = Field(
        Durability.PROCESS,
        description="What an acknowledged capture survives: `process` (kill -9) or `disk` (loss of power; grouped fsync).",
    )
    when_full: Literal["serve", "refuse"] = Field(
        "serve",
        description="What happens while nothing can be captured: `serve` answers and counts it, `refuse` answers 503.",
    )
    drain_seconds: float = Field(
        1.0, gt=0, le=60, description="How often captures go from the spool into the database; the fewer times, the cheaper each."
    )
    spool_max_bytes: int = Field(
        2_000_000_000, ge=1, description="With so much in it the spool takes no new captures: requests are served, and counted."
    )
    spool_segment_bytes: int = Field(16_000_000, ge=1, description="A spool file is closed, and later deleted, at this size.")

    @field_validator("teacher_url")
    @classmethod
    def _http(cls, url: str) -> str:
        return http_url(url)

    @field_validator("teacher_key")
    @classmethod
    def _printable(cls, key: SecretStr | None) -> SecretStr | None:
        value = key.get_secret_value().strip() if key is not None else None
        if value is not None and not value.isprintable():
            raise ValueError("must have no control characters in it")
        return SecretStr(value) if value else None
