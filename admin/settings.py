"""How the admin room is wired, and what it says of the rooms beside it."""

from pathlib import Path

from pydantic import Field, SecretStr

from store.settings import StoreSettings


class AdminSettings(StoreSettings):
    """Read from STILLROOM_* environment variables."""

    admin_host: str = Field("127.0.0.1", description="Address the admin API listens on.")
    admin_port: int = Field(8081, ge=1, le=65535, description="Port the admin API listens on.")

    # The proxy reads these for itself; `up` and `doctor` speak of them.
    proxy_host: str = Field("127.0.0.1", description="Address the proxy listens on.")
    proxy_port: int = Field(8080, ge=0, le=65535, description="Port the proxy listens on.")
    teacher_url: str = Field("https://api.openai.com/v1", description="Base URL of the teacher's API.")
    teacher_key: SecretStr | None = Field(None, description="The operator's key, used instead of the clients' own.")
    require_key: bool = Field(False, description="Only requests with a key of stillroom's own are let in.")
    teachers: Path | None = Field(None, description="TOML file of several teachers, by model.")
