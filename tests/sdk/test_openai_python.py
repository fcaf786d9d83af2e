"""openai-python's own tests, once against a mock and once through the proxy: the same verdicts, and the same requests arrive."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.sdk.conftest import CLIENTS, Proxy
from tests.sdk.mock import Mock, arrived

SOURCE = CLIENTS / "sdk/source"  #: openai-python's source package, which carries its tests
WHICH = (  #: all once; the loose ones say less, and aiohttp is tried where it matters
    "(strict and not (Async and (raw_response or streaming_response)))"
    " or (aiohttp and (completions or responses or files or audio or uploads))"
)


def start(url: str, report: Path) -> subprocess.Popen[bytes]:
    """Begin its tests of every resource, sync, async and some over aiohttp, with strict validation of what is answered."""
    command = [
        CLIENTS / "sdk/bin/python", "-m", "pytest", "tests/api_resources", "-q", "-p", "no:cacheprovider", "-o", "addopts=",
        "-W", "ignore", "--tb=line", "-k", WHICH, f"--junitxml={report}",
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PYTHONPATH"))}
    return subprocess.Popen(
        command, cwd=SOURCE, env={**environment, "TEST_API_BASE_URL": url}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def verdicts(report: Path) -> dict[str, list[str]]:
    """What failed, was skipped or is broken in each test; nothing for one that has passed."""
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return {f"{case.get('classname')}::{case.get('name')}": [each.tag for each in case] for case in cases}


def test_its_own_tests_have_the_same_verdicts_through_the_proxy(mock: Mock, teacher: Mock, proxy: Proxy, tmp_path: Path):
    running = [start(mock.url, tmp_path / "direct.xml"), start(proxy.url, tmp_path / "proxied.xml")]
    try:
        for process in running:
            process.wait(280)
    finally:
        for process in running:
            process.kill()
    direct, proxied = verdicts(tmp_path / "direct.xml"), verdicts(tmp_path / "proxied.xml")
    assert len(direct) > 2500
    assert {name: (found, proxied.get(name)) for name, found in direct.items() if found != proxied.get(name)} == {}
    assert not mock.unknown
    assert [name for name, found in direct.items() if found and found != ["skipped"]] == []
    assert len(mock.seen) > 2000
    for one, other in zip(arrived(mock), arrived(teacher), strict=True):
        assert other == one


def suite(url: str) -> dict[str, Any]:
    """What every call of `suite.py` gives at this base URL."""
    command = [CLIENTS / "sdk/bin/python", Path(__file__).with_name("suite.py"), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_every_trouble_is_the_same_through_the_proxy(mock: Mock, teacher: Mock, proxy: Proxy):
    direct, proxied = suite(mock.url), suite(proxy.url)
    assert len(direct) > 90
    differing = {name: (found, proxied.get(name)) for name, found in direct.items() if found != proxied.get(name)}
    assert differing.keys() == {"lost", "lost, async"}  # no answer at all: for the proxy's client that is a 502
    assert {(found["error"], found["code"]) for _, found in differing.values()} == {("InternalServerError", "teacher_lost")}
    for one, other in zip(arrived(mock), arrived(teacher), strict=True):
        assert other == one
