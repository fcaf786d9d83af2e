from proxy.head import Head
from proxy.trust import SECONDS, Trust

ALICE = [(b"authorization", b"Bearer sk-alice"), (b"user-agent", b"x")]


def test_a_key_is_good_for_an_hour_after_the_teacher_took_it():
    now = [0.0]
    keys = Trust(lambda: now[0])
    assert not keys.accepted(Head(ALICE))
    keys.accept(Head(ALICE))
    assert keys.accepted(Head(ALICE[:1]))
    assert not keys.accepted(Head([(b"authorization", b"Bearer sk-bob")]))
    assert not keys.accepted(Head([]))
    now[0] = SECONDS
    assert not keys.accepted(Head(ALICE))


def test_a_key_that_the_teacher_refuses_is_good_no_longer():
    keys = Trust()
    keys.accept(Head(ALICE))
    keys.revoke(Head([(b"authorization", b"Bearer sk-bob")]))
    assert keys.accepted(Head(ALICE))
    keys.revoke(Head(ALICE))
    keys.revoke(Head(ALICE))
    assert not keys.accepted(Head(ALICE))


def test_no_key_is_kept_in_the_clear():
    keys = Trust()
    keys.accept(Head(ALICE))
    assert "sk-alice" not in repr(vars(keys))
