"""What is measured, and how it is started."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from store import migrate, routes
from store.session import Database
from store.tables import VirtualKey
from tests.bench.proxy.load import HEADERS, chat_body

ROOT = Path(__file__).parents[3]
NGINX = """daemon off; master_process off; worker_processes 1; pid {run}/nginx.pid; error_log {run}/nginx-error.log;
events { worker_connections 4096; }
http {
    access_log off; keepalive_requests 100000000; client_body_buffer_size 64k;
    client_body_temp_path {run}/n1; proxy_temp_path {run}/n2;
    fastcgi_temp_path {run}/n3; uwsgi_temp_path {run}/n4; scgi_temp_path {run}/n5;
    upstream up { server {upstream}; keepalive 512; keepalive_requests 100000000; }
    server {
        listen 127.0.0.1:{port} backlog=4096;
        location / { proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }
    }
}
"""
# The models that the load asks for, without authentication, retries and telemetry: the cheapest it can be.
LITELLM = """model_list:
{models}
litellm_settings: {telemetry: false, num_retries: 0, request_timeout: 600, set_verbose: false}
router_settings: {num_retries: 0}
"""


class NotMeasured(Exception):
    """The target is not here, or does not answer; the message says why."""


@dataclass
class Target:
    """A proxy in front of the upstream. `command` may hold {port}, {run} (a folder) and {upstream} (host:port)."""

    name: str
    port: int
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  #: written below {run} first
    prepare: Callable[[Path], None] | None = None  #: called with {run} before that
    ready_seconds: float = 30
    most_rate: float = 1e9  #: requests a second that it can take
    most_streams: int = 100_000
    pid: int = 0
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/chat/completions"

    def start(self, run: Path, upstream: str, core: int) -> None:
        """Start it on one core, and wait until it answers. Raises NotMeasured."""
        if not self.command:
            return

        def filled(text: str) -> str:
            return text.replace("{run}", str(run)).replace("{upstream}", upstream).replace("{port}", str(self.port))

        if self.prepare is not None:
            self.prepare(run)
        for name, text in self.files.items():
            (run / name).write_text(filled(text))
        command = ["taskset", "-c", str(core), *map(filled, self.command)]
        environment = {name: filled(value) for name, value in self.environment.items()}
        with (run / f"{self.name}.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, env={**os.environ, **environment}, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )
        self.pid = self._process.pid
        deadline, said = time.monotonic() + self.ready_seconds, "nothing"
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise NotMeasured(f"it ended with exit code {self._process.returncode}: see {run / self.name}.log")
            try:
                answer = httpx.post(self.url, content=chat_body("mock", stream=False), headers=HEADERS, timeout=10)
            except httpx.HTTPError as error:
                said = type(error).__name__
            else:
                if answer.status_code == 200 and "choices" in answer.text:
                    return
                said = f"{answer.status_code} {answer.text[:200]}"
            time.sleep(0.3)
        raise NotMeasured(f"it does not answer: {said}")

    def signal(self, number: signal.Signals) -> None:
        """Of its whole tree, the processes with sessions of their own among them."""
        if self._process is not None and self._process.poll() is None:
            root = psutil.Process(self._process.pid)
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def stop(self) -> None:
        if self._process is None:
            return
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(40)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self._process.wait()


def everything_on(run: Path) -> None:
    """A database in which the load's key is stillroom's own, with limits, and another task has a student."""
    db = Database(f"sqlite:///{run}/stillroom/stillroom.db")
    migrate.upgrade(db)
    secret = HEADERS["Authorization"].removeprefix("Bearer ").encode()
    digest = hashlib.sha256(secret).hexdigest()
    with db.begin() as session:
        session.add(VirtualKey(sha256=digest, last4="9abc", label="load", budget_usd=1e9))
        routes.point(session, "task_0123456789abcdef", "task_0123456789abcdef@v1", by="bench", why="routes are looked at")
    db.close()


def all_targets(peers: Path) -> list[Target]:
    """Everything there is to measure; `peers` is the folder in which each peer has its virtual environment."""
    model = "  - {model_name: NAME, litellm_params: {model: openai/NAME, api_base: 'http://{upstream}/v1', api_key: sk-mock}}"
    models = "\n".join(model.replace("NAME", name) for name in ("mock", "mock-n100-d20"))
    return [
        Target("direct", 9100),
        Target("nginx", 9201, ("nginx", "-c", "{run}/nginx.conf"), files={"nginx.conf": NGINX}),
        Target(
            "stillroom",
            9202,
            (sys.executable, "-m", "proxy"),
            {
                "STILLROOM_HOME": "{run}/stillroom",
                "STILLROOM_PROXY_PORT": "{port}",
                "STILLROOM_TEACHER_URL": "http://{upstream}/v1",
                "STILLROOM_TEACHER_KEY": "sk-operator-0123456789abcdef0123456789abcdef",
                "STILLROOM_REQUIRE_KEY": "true",
                "STILLROOM_SPOOL_MAX_BYTES": "20000000000",
            },
            prepare=everything_on,
        ),
        Target(
            "litellm",
            9203,
            (f"{peers}/litellm/bin/litellm", "--config", "{run}/litellm.yaml", "--host", "127.0.0.1", "--port", "{port}"),
            {
                "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "LITELLM_MODE": "PRODUCTION",
                "LITELLM_LOG": "ERROR",
                "LITELLM_TELEMETRY": "False",
            },
            files={"litellm.yaml": LITELLM.replace("{models}", models)},
            ready_seconds=120,
            most_rate=40,
            most_streams=15,
        ),
        Target(
            "sglang-router",
            9204,
            (
                f"{peers}/sglang-router/bin/sglang-router", "launch", "--backend", "openai", "--worker-urls", "http://{upstream}",
                "--host", "127.0.0.1", "--port", "{port}", "--prometheus-host", "127.0.0.1", "--prometheus-port", "9304",
                "--disable-retries", "--disable-circuit-breaker", "--log-level", "warn",
            ),
        ),
    ]  # fmt: skip
