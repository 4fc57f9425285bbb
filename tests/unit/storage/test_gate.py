"""The gate that counts the calls inside."""

import threading

import pytest

from kvnode.node.errors import EngineClosed
from kvnode.node.storage.gate import Gate


def test_shut_gate_lets_nobody_in_and_names_what_is_behind() -> None:
    gate = Gate("the store")
    with gate:
        pass
    assert gate.shut(0)
    with pytest.raises(EngineClosed, match="the store"), gate:
        pass
    assert gate.shut(0)


def test_shutting_waits_for_the_last_one_inside() -> None:
    gate = Gate("it")
    entered, leave = threading.Barrier(3), threading.Event()

    def stay() -> None:
        with gate:
            entered.wait()
            leave.wait()

    threads = [threading.Thread(target=stay) for _ in range(2)]
    for thread in threads:
        thread.start()
    entered.wait()
    assert not gate.shut(0)
    with pytest.raises(EngineClosed), gate:
        pass
    leave.set()
    assert gate.shut(30)
    for thread in threads:
        thread.join()


def test_one_that_leaves_by_an_exception_has_left() -> None:
    gate = Gate("it")
    with pytest.raises(ZeroDivisionError), gate:
        raise ZeroDivisionError
    assert gate.shut(0)


def test_one_thread_may_be_inside_twice() -> None:
    gate = Gate("it")
    with gate, gate:
        assert not gate.shut(0)
    assert gate.shut(0)
