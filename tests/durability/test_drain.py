"""SIGTERM under load."""

import uvloop

from tests.durability import checks, drain


def test_sigterm_under_load_answers_what_was_accepted_and_leaves_nothing_behind(tmp_path):
    result = uvloop.run(drain.run(tmp_path / "home"))
    assert checks.wrong("drain", result) == []
