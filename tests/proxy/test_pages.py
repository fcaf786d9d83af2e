"""The proxy's own pages, asked by schemathesis in every way that their description allows and in some that it does not."""

import json
import subprocess
from pathlib import Path

SCHEMATHESIS = Path(__file__).parents[2] / ".cache/clients/schemathesis/bin/schemathesis"
JSON = {"application/json": {"schema": {"type": "object"}}}
TEXT = {kind: {"schema": {"type": "string"}} for kind in ("text/plain", "application/openmetrics-text")}


def test_schemathesis_finds_nothing_wrong_with_the_pages(start, tmp_path):
    pages = {"/healthz": JSON, "/readyz": JSON, "/metrics": TEXT}
    paths = {path: {"get": {"responses": {"200": {"description": "", "content": content}}}} for path, content in pages.items()}
    document = tmp_path / "openapi.json"
    document.write_text(json.dumps({"openapi": "3.1.0", "info": {"title": "pages", "version": "1"}, "paths": paths}))
    proxy = start()
    command = [SCHEMATHESIS, "run", document, "--url", proxy.url, "--checks", "all", "--max-examples", "50", "--no-color"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "3 selected" in done.stdout or "3 tested" in done.stdout, done.stdout[-3000:]
    assert proxy.ready()["status"] == "ok"
