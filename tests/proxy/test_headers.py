from proxy.headers import secrets, to_teacher

SENT = [
    (b"authorization", b"Bearer sk-client-1"),
    (b"api-key", b"sk-client-22"),
    (b"x-api-key", b"short"),
    (b"cookie", b"a=1"),
    (b"openai-organization", b"org"),
    (b"openai-project", b"proj"),
    (b"user-agent", b"x"),
]


def test_with_the_operators_key_nothing_goes_on_that_says_who_the_client_is_to_the_teacher():
    assert to_teacher(SENT, None) == SENT
    assert to_teacher(SENT, "sk-operator") == [(b"user-agent", b"x"), (b"authorization", b"Bearer sk-operator")]


def test_secrets_are_keys_with_and_without_their_scheme_and_no_placeholders():
    assert secrets(SENT) == [b"Bearer sk-client-1", b"sk-client-22", b"sk-client-1"]
