"""A full disk: what STILLROOM_WHEN_FULL says happens, and nothing in silence."""

import pytest
import uvloop

from tests.durability import checks, full


@pytest.mark.parametrize("what", ["spool", "both"])
def test_while_the_spools_disk_is_full_requests_are_served_and_what_is_not_kept_is_counted(tmp_path, what):
    result = uvloop.run(full.run(tmp_path, what=what))
    assert checks.wrong("full", result) == []


def test_while_no_process_may_write_files_requests_are_served_and_what_is_not_kept_is_counted(tmp_path):
    result = uvloop.run(full.run(tmp_path, what="spool", mount=False))
    assert result["disk"] == "RLIMIT_FSIZE"
    assert checks.wrong("full", result) == []


def test_with_refuse_nothing_is_acknowledged_that_is_not_kept_and_the_teacher_is_not_asked(tmp_path):
    result = uvloop.run(full.run(tmp_path, what="spool", policy="refuse"))
    assert checks.wrong("full", result) == []


def test_while_the_databases_disk_is_full_the_spool_keeps_everything(tmp_path):
    result = uvloop.run(full.run(tmp_path, what="database"))
    assert checks.wrong("full", result) == []
