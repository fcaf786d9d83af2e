"""The systemd unit: read as systemd reads it, and verified by systemd itself where there is one."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

from admin.supervisor import DRAIN, GRACE
from tests.deploy.test_compose import settings

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy/stillroom.service"


def read() -> dict[str, dict[str, list[str]]]:
    """{section: {key: values}}: keys may come more than once, which configparser does not know."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    section = ""
    for line in UNIT.read_text().splitlines():
        if not line.strip() or line.startswith(("#", ";")):
            continue
        if line.startswith("["):
            section = line.strip("[]")
            continue
        key, sep, value = line.partition("=")
        assert sep, f"neither a section nor a setting: {line}"
        found[section][key].append(value)
    return found


def test_it_runs_everything_and_is_started_at_boot() -> None:
    unit = read()
    assert set(unit) == {"Unit", "Service", "Install"}
    program, *arguments = unit["Service"]["ExecStart"][0].split()
    assert Path(program).name in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert arguments == ["up"]
    assert unit["Install"]["WantedBy"] == ["multi-user.target"]


def test_it_stops_up_first_and_leaves_it_time_to_stop_its_rooms() -> None:
    service = read()["Service"]
    assert service["KillMode"] == ["mixed"]
    assert int(service["TimeoutStopSec"][0]) > DRAIN + GRACE
    assert service["Restart"] == ["on-failure"]


def test_its_home_is_its_state_folder_and_nobody_elses() -> None:
    service = read()["Service"]
    assert service["Environment"] == [f"STILLROOM_HOME=/var/lib/{service['StateDirectory'][0]}"]
    assert service["StateDirectoryMode"] == ["0700"]
    assert service["User"] == ["stillroom"]


def test_it_can_change_nothing_but_its_home() -> None:
    service = read()["Service"]
    assert service["ProtectSystem"] == ["strict"]
    assert service["CapabilityBoundingSet"] == [""]
    for name in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "ProtectKernelModules", "RestrictSUIDSGID"):
        assert service[name] == ["yes"]
    assert "MemoryDenyWriteExecute" not in service  # torch and vLLM compile code as they run
    assert "PrivateDevices" not in service  # a GPU is a device


def test_secrets_come_from_a_file_that_may_be_missing() -> None:
    assert read()["Service"]["EnvironmentFile"] == ["-/etc/stillroom.env"]


def test_a_token_is_made_with_the_services_user_home_and_settings() -> None:
    service = read()["Service"]
    text = (ROOT / "deploy/README.md").read_text().replace("\\\n", " ")
    [line] = [line for line in text.splitlines() if "systemd-run" in line]
    words = line.split()
    assert f"--uid={service['User'][0]}" in words
    assert f"EnvironmentFile={service['EnvironmentFile'][0].lstrip('-')}" in words
    assert service["Environment"][0] in words
    assert [service["ExecStart"][0].split()[0], "token", "new"] == words[-5:-2]


def test_the_example_names_settings_that_exist() -> None:
    known = set().union(*(settings(room) for room in ("proxy", "distill", "serving", "admin")))
    lines = (ROOT / "deploy/stillroom.env.example").read_text().splitlines()
    named = {match[1] for line in lines if (match := re.match(r"#?([A-Z_]+)=", line))}
    assert named
    assert named <= known


def test_systemd_takes_every_line(tmp_path: Path) -> None:
    text = UNIT.read_text()
    assert all(re.fullmatch(r"[A-Z]\w+=.*|\[\w+\]|#.*|", line) for line in text.splitlines())
    analyze = shutil.which("systemd-analyze")
    if analyze:  # the program need not be installed yet, so another one stands in for it
        copy = tmp_path / UNIT.name
        copy.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={sys.executable}", text))
        said = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, check=False)
        assert (said.returncode, said.stderr) == (0, "")
