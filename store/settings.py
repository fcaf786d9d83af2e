"""Where things are kept: the settings every room shares."""

import sys
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

S = TypeVar("S", bound="StoreSettings")


class StoreSettings(BaseSettings):
    """Read from STILLROOM_* environment variables; each room's settings extend these."""

    model_config = SettingsConfigDict(env_prefix="STILLROOM_", env_ignore_empty=True, extra="ignore")

    home: Path = Field(Path.home() / ".stillroom", description="Folder for the embedded database, artifacts, spool and logs.")
    database_url: str | None = Field(
        None, description="SQLAlchemy URL, such as postgresql://user:password@host/name. Default: SQLite in the home folder."
    )

    @property
    def url(self) -> str:
        """The database's SQLAlchemy URL; bare postgresql:// URLs are given the psycopg driver."""
        if self.database_url is None:
            return f"sqlite:///{self.home_path}/stillroom.db"
        scheme, _, rest = self.database_url.partition("://")
        return f"postgresql+psycopg://{rest}" if scheme in {"postgres", "postgresql"} else self.database_url

    @property
    def home_path(self) -> Path:
        """The home folder, absolute; paths in rows are below it."""
        return self.home.expanduser().resolve()

    @property
    def artifacts(self) -> Path:
        """Datasets, runs and adapters."""
        return self.home_path / "artifacts"

    def run_folder(self, run_id: str) -> Path:
        """Where a run keeps its checkpoints and leaves its adapter, `adapter/`: the same whatever its task is merged into."""
        return self.artifacts / "runs" / run_id

    @property
    def logs(self) -> Path:
        """Log files of the processes that stillroom supervises."""
        return self.home_path / "logs"


def load(kind: type[S]) -> S:
    """A room's settings out of the environment; exits with a line on stderr that names the variable if they cannot be used."""
    try:
        return kind()
    except ValidationError as error:
        sys.exit(f"Error: {explain(error)}")


def explain(error: ValidationError) -> str:
    """What is wrong with the environment, in words for a person. Never what a variable holds: it may be a secret."""
    wrong = "; ".join(f"STILLROOM_{'_'.join(map(str, each['loc'])).upper()}: {each['msg']}" for each in error.errors())
    return f"The environment cannot be used: {wrong}"
