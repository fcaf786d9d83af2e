"""vLLM as a container of its own: the very command that serving would start, on the address that STILLROOM_VLLM_ARGS gives it.

`python student.py prepare` makes the base model's folder and ends; `python student.py` becomes vLLM.
"""

import os
import sys

from serving import base, command
from serving.settings import ServingSettings


def main() -> None:
    settings = ServingSettings()
    try:
        folder = base.prepare(settings.base_model, settings.models_path)
    except base.BaseModelMissing as missing:
        sys.exit(f"the base model cannot be prepared: {missing}")
    if sys.argv[1:] == ["prepare"]:
        return
    vllm = command.build(settings, folder)
    os.execvpe(vllm.arguments[0], vllm.arguments, {**os.environ, **vllm.environment})  # noqa: S606


if __name__ == "__main__":
    main()
