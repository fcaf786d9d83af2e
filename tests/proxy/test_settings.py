import pytest
from pydantic import ValidationError

from proxy.settings import ProxySettings


def test_a_key_out_of_a_file_loses_its_line_end():
    key = ProxySettings(teacher_key="sk-1\r\n").teacher_key
    assert key is not None
    assert key.get_secret_value() == "sk-1"


def test_a_key_that_no_header_can_carry_is_refused_and_not_shown():
    with pytest.raises(ValidationError, match="control characters") as refused:
        ProxySettings(teacher_key="sk-secret\nx: y")
    assert "sk-secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    ["api.openai.com", "http://", "https:///v1", "http://:80/v1", "http://h:99999", "http://h:x/v1", "http://h:0/v1",
     "http://a b/v1", "https://h/v1?key=1", "https://h/v1#top", "https://h/v1?"],
)  # fmt: skip
def test_an_address_that_no_teacher_can_have_is_refused(url):
    with pytest.raises(ValidationError, match="teacher_url"):
        ProxySettings(teacher_url=url)


@pytest.mark.parametrize("url", ["https://api.openai.com/v1/", "http://127.0.0.1:8000", "http://[::1]:8000/v1"])
def test_an_address_loses_no_more_than_its_last_slash(url):
    assert ProxySettings(teacher_url=url).teacher_url == url.rstrip("/")
