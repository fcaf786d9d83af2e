"""The glossary: every state says in a sentence what it means."""

import pytest

from store import states
from store.states import State, TaskStatus

STATES = [
    state
    for kind in vars(states).values()
    if isinstance(kind, type) and issubclass(kind, State) and kind is not State
    for state in kind
]


def test_there_are_states() -> None:
    assert len(STATES) > 30


@pytest.mark.parametrize("state", STATES, ids=repr)
def test_every_state_has_a_sentence(state: State) -> None:
    assert state.sentence[0].isupper()
    assert state.sentence.endswith(".")
    assert " " in state.sentence


def test_a_state_is_its_value() -> None:
    assert TaskStatus("paused") is TaskStatus.PAUSED
    assert f"{TaskStatus.PAUSED}" == "paused"
    assert TaskStatus.PAUSED == "paused"
