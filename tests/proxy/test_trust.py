from proxy.trust import SECONDS, Keys

ALICE = [(b"authorization", b"Bearer sk-alice"), (b"user-agent", b"x")]


def test_a_key_is_good_for_an_hour_after_the_teacher_took_it():
    now = [0.0]
    keys = Keys(lambda: now[0])
    assert not keys.accepted(ALICE)
    keys.accept(ALICE)
    assert keys.accepted(ALICE[:1])
    assert not keys.accepted([(b"authorization", b"Bearer sk-bob")])
    assert not keys.accepted([])
    now[0] = SECONDS
    assert not keys.accepted(ALICE)


def test_a_key_that_the_teacher_refuses_is_good_no_longer():
    keys = Keys()
    keys.accept(ALICE)
    keys.revoke([(b"authorization", b"Bearer sk-bob")])
    assert keys.accepted(ALICE)
    keys.revoke(ALICE)
    keys.revoke(ALICE)
    assert not keys.accepted(ALICE)


def test_no_key_is_kept_in_the_clear():
    keys = Keys()
    keys.accept(ALICE)
    assert "sk-alice" not in repr(vars(keys))
