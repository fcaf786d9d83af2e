"""What the student is shown of a request."""

from store.prompts import for_student


def test_no_longer_answer_is_asked_for_than_the_engine_has_room_for() -> None:
    request = {"messages": [], "max_tokens": 100_000, "max_completion_tokens": 20}
    assert for_student(request, "a@v1", 4096)["max_tokens"] == 4096
    assert for_student(request, "a@v1", 4096)["max_completion_tokens"] == 20
    assert for_student(request, "a@v1")["max_tokens"] == 100_000
    assert "max_tokens" not in for_student({"messages": []}, "a@v1", 4096)
    assert for_student({"messages": [], "max_tokens": None}, "a@v1", 4096)["max_tokens"] is None


def test_what_a_teacher_thought_in_earlier_turns_is_not_shown() -> None:
    said = {"role": "assistant", "content": "even"}
    request = {"messages": [{**said, "reasoning": "4 = 2 + 2", "reasoning_content": "4 = 2 + 2"}, "odd shape"]}
    assert for_student(request, "a@v1")["messages"] == [said, "odd shape"]
