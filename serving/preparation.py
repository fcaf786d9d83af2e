"""The base model's folder, made in a process of its own: serving never loads torch."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from serving.command import BaseUnavailable, python_path
from store import children

PREPARE = """
import sys
from pathlib import Path
from serving.base import BaseModelMissing, prepare
try:
    print("prepared:", prepare(sys.argv[1], Path(sys.argv[2])), flush=True)
except BaseModelMissing as missing:
    sys.exit(f"{missing}")
"""


class Preparation:
    """`serving.base.prepare` as a process. Call from one thread that lives on: the process dies with it."""

    def __init__(self, model: str, models_path: Path) -> None:
        self.model, self.models_path = model, models_path
        self._child: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # as long as this object

    def poll(self) -> Path | None:
        """The folder, or None while it is being prepared. Raises BaseUnavailable; the next call tries again."""
        if self._child is None:
            self._said.seek(0)
            self._said.truncate()
            command = [sys.executable, "-c", PREPARE, self.model, str(self.models_path)]
            self._child = children.spawn(command, stdout=self._said, stderr=self._said, environment={"PYTHONPATH": python_path()})
        code = self._child.poll()
        if code is None:
            return None
        self._child = None
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        if code != 0:
            why = lines[-1] if lines else f"the process ended with exit code {code} and said nothing"
            raise BaseUnavailable(f"the base model cannot be prepared: {why}")
        return Path(next(line for line in lines if line.startswith("prepared: ")).removeprefix("prepared: "))

    def stop(self) -> None:
        if self._child is not None:
            children.stop(self._child, grace=0)
            self._child = None
        self._said.close()
