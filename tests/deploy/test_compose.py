"""compose.yaml as compose would read it, held to what the rooms need and to what must never be."""

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from store.settings import StoreSettings
from tests.deploy.test_images import stages

DEPLOY = Path(__file__).parents[2] / "deploy"
TEXT = (DEPLOY / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EXAMPLE = (DEPLOY / "compose.env.example").read_text()
OURS = sorted(name for name in SERVICES if name != "db")
PROFILES = ("cpu", "gpu")


def room(service: dict[str, Any]) -> str:
    """Whose settings a service reads."""
    command = service["command"]
    return "serving" if command[1].endswith("student.py") else str(command[2])


def settings(name: str) -> set[str]:
    """The environment variables that a room's settings read."""
    module = importlib.import_module(f"{name}.settings")
    classes = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, StoreSettings)]
    return {f"STILLROOM_{field}".upper() for each in classes for field in each.model_fields}


def test_profiles_start_the_same_services_for_either_hardware() -> None:
    always = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert always == {"db", "proxy", "admin"}
    for profile in PROFILES:
        chosen = {name for name, service in SERVICES.items() if service.get("profiles") == [profile]}
        assert chosen == {f"{each}-{profile}" for each in ("base", "vllm", "serving", "distill")}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_a_health_check_or_says_why_not(name: str) -> None:
    service = SERVICES[name]
    if service["healthcheck"].get("disable"):
        assert len(service["x-no-healthcheck"]) > 20
    else:
        assert service["healthcheck"]["test"][0] == "CMD"
        assert "x-no-healthcheck" not in service


def test_health_checks_ask_ports_that_the_rooms_listen_on() -> None:
    from admin.settings import AdminSettings
    from proxy.settings import ProxySettings

    ports = {"proxy": ProxySettings.model_fields["proxy_port"].default, "admin": AdminSettings.model_fields["admin_port"].default}
    for name, port in ports.items():
        assert f"http://127.0.0.1:{port}/healthz" in SERVICES[name]["healthcheck"]["test"][-1]
        assert SERVICES[name]["ports"][0].endswith(f":{port}")


def test_only_proxy_and_admin_are_published_and_on_the_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"proxy", "admin"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


@pytest.mark.parametrize("profile", PROFILES)
def test_vllm_is_reached_by_the_rooms_alone_at_the_address_that_serving_writes_into_the_rows(profile: str) -> None:
    vllm = SERVICES[f"vllm-{profile}"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    assert list(vllm["networks"]) == ["inside"]
    alias = vllm["networks"]["inside"]["aliases"][0]
    arguments = shlex.split(vllm["environment"]["STILLROOM_VLLM_ARGS"])
    port = arguments[arguments.index("--port") + 1]
    assert arguments[arguments.index("--host") + 1] == "0.0.0.0"
    assert SERVICES[f"serving-{profile}"]["environment"]["STILLROOM_STUDENT_URL"] == f"http://{alias}:{port}"
    assert f"http://127.0.0.1:{port}/health" in vllm["healthcheck"]["test"][-1]
    for name in ("proxy", f"serving-{profile}", f"distill-{profile}"):
        assert "inside" in SERVICES[name]["networks"]


@pytest.mark.parametrize("profile", PROFILES)
def test_adapters_and_base_model_lie_at_one_path_and_vllm_only_reads_them(profile: str) -> None:
    home = "home:/var/lib/stillroom"
    mounts = {each: SERVICES[f"{each}-{profile}"]["volumes"] for each in ("base", "vllm", "serving", "distill")}
    assert mounts == {"base": [home], "vllm": [f"{home}:ro"], "serving": [home], "distill": [home]}


@pytest.mark.parametrize("profile", PROFILES)
def test_vllm_is_started_with_what_serving_checks_adapters_against(profile: str) -> None:
    shared = {"STILLROOM_BASE_MODEL", "STILLROOM_MAX_LORAS", "STILLROOM_MAX_LORA_RANK", "STILLROOM_MAX_MODEL_LEN"}
    for name in ("vllm", "serving"):
        assert shared <= set(SERVICES[f"{name}-{profile}"]["environment"])


def test_the_engines_row_keeps_its_name_when_containers_are_made_anew() -> None:
    for profile in PROFILES:
        assert SERVICES[f"serving-{profile}"]["environment"]["STILLROOM_ENGINE_ID"]


@pytest.mark.parametrize("name", OURS)
def test_a_service_runs_a_room_in_an_image_that_is_built_here(name: str) -> None:
    service = SERVICES[name]
    assert service["build"]["target"] in stages()
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    assert service["image"].partition(":")[0] == f"stillroom-{service['build']['target']}"
    command = service["command"]
    if command[1] == "-m":
        assert (DEPLOY.parent / command[2] / "__main__.py").is_file()
    else:
        folder, _, file = command[1].rpartition("/")
        assert f"COPY deploy/{file} {folder}/" in stages()[service["build"]["target"]]


@pytest.mark.parametrize("name", SERVICES)
def test_images_have_a_version(name: str) -> None:
    tag = SERVICES[name]["image"].partition(":")[2]
    assert tag
    assert tag != "latest"


@pytest.mark.parametrize("name", OURS)
def test_a_service_sets_only_what_its_room_reads(name: str) -> None:
    given = {key for key in SERVICES[name].get("environment", {}) if key.startswith("STILLROOM_")}
    assert given <= settings(room(SERVICES[name]))


@pytest.mark.parametrize("name", OURS)
def test_a_room_has_no_more_rights_than_it_needs(name: str) -> None:
    assert SERVICES[name]["cap_drop"] == ["ALL"]
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "user", "network_mode", "pid"} & set(SERVICES[name])


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_exists_beside_it_and_can_come_true(name: str) -> None:
    for other, rule in SERVICES[name].get("depends_on", {}).items():
        target = SERVICES[other]
        assert set(target.get("profiles", [])) <= set(SERVICES[name].get("profiles", []))
        if rule["condition"] == "service_healthy":
            assert "test" in target["healthcheck"]
        else:
            assert rule["condition"] == "service_completed_successfully"
            assert target["restart"] == "no"
    assert SERVICES[name]["restart"] in {"no", "unless-stopped"}


def test_no_secret_has_a_value() -> None:
    for name, service in SERVICES.items():
        for key, value in (service.get("environment") or {}).items():
            if re.search("KEY|TOKEN|PASSWORD|SECRET", key):
                assert value is None or value.startswith("${"), f"{name}: {key}"
    assert not re.search(r"://\w+:[^$@\s]+@", TEXT)
    for file in ("compose.env.example", "stillroom.env.example"):
        for line in (DEPLOY / file).read_text().splitlines():
            key, _, value = line.lstrip("#").partition("=")
            if re.search("KEY$|TOKEN$|PASSWORD$|SECRET$", key):
                assert not value, f"{file}: {line}"
    assert ".env" in (DEPLOY / ".gitignore").read_text().split()


def test_the_example_names_every_variable_that_compose_takes_and_no_other() -> None:
    taken = set(re.findall(r"\$\{(\w+)", TEXT))
    taken |= {key for service in SERVICES.values() for key, value in (service.get("environment") or {}).items() if value is None}
    named = set(re.findall(r"^#?([A-Z_]+)=", EXAMPLE, re.MULTILINE))
    assert named == taken | {"COMPOSE_PROFILES"}


def test_every_volume_and_network_is_declared_and_used() -> None:
    volumes = {mount.partition(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])}
    networks = {network for service in SERVICES.values() for network in service["networks"]}
    assert volumes == set(COMPOSE["volumes"])
    assert networks == set(COMPOSE["networks"])
