"""An alarm rings at its time or earlier, and once for each time it was set."""

import asyncio

from kvnode.node.replication.alarm import Alarm
from support.manual_loop import ManualLoop


class Rings:
    """Keeps when it rang."""

    def __init__(self) -> None:
        self.loop = ManualLoop()
        self.began = self.loop.now
        self.alarm = Alarm(self.loop, self._ring)  # type: ignore[arg-type]
        self.at: list[float] = []

    def _ring(self) -> None:
        self.at.append(self.loop.now - self.began)

    def set(self, after_s: float) -> None:
        self.alarm.set(self.began + after_s)


async def test_it_rings_once() -> None:
    rings = Rings()
    rings.set(5)
    rings.loop.advance(4)
    assert rings.at == []
    rings.loop.advance(100)
    assert rings.at == [5]


async def test_set_earlier_it_rings_earlier_and_once() -> None:
    rings = Rings()
    rings.set(5)
    rings.set(3)
    rings.loop.advance(100)
    assert rings.at == [3]


async def test_set_later_it_costs_nothing_and_rings_at_the_earlier_time() -> None:
    rings = Rings()
    rings.set(3)
    for _ in range(1000):
        rings.set(50)
    assert len(rings.loop.timers) == 1
    rings.loop.advance(3)
    assert rings.at == [3]
    rings.set(50)
    rings.loop.advance(100)
    assert rings.at == [3, 50]


async def test_set_for_the_past_it_rings_at_once_but_not_from_inside() -> None:
    rings = Rings()
    rings.set(-5)
    assert rings.at == []
    rings.loop.advance(0)
    assert rings.at == [0]


async def test_set_while_it_rings() -> None:
    loop = ManualLoop()
    at: list[float] = []

    def ring() -> None:
        at.append(loop.now)
        if len(at) < 4:
            alarm.set(loop.now + 1)

    alarm = Alarm(loop, ring)  # type: ignore[arg-type]
    alarm.set(loop.now + 1)
    loop.advance(10)
    assert at == [1001, 1002, 1003, 1004]


async def test_never_is_a_time_too() -> None:
    rings = Rings()
    rings.set(float("inf"))
    rings.loop.advance(1e9)
    assert rings.at == []
    rings.set(2e9)
    rings.set(float("inf"))
    rings.loop.advance(2e9)
    assert rings.at == [2e9], "earlier than it was set to last"


async def test_cancelled_it_does_not_ring_until_it_is_set_again() -> None:
    rings = Rings()
    rings.alarm.cancel()
    rings.set(1)
    rings.alarm.cancel()
    rings.loop.advance(2)
    assert rings.at == []
    rings.set(3)
    rings.loop.advance(2)
    assert rings.at == [3]


async def test_on_the_running_loop() -> None:
    loop = asyncio.get_running_loop()
    rang = asyncio.Event()
    alarm = Alarm(loop, rang.set)
    alarm.set(loop.time() + 0.01)
    await asyncio.wait_for(rang.wait(), 20)
    rang.clear()
    alarm.set(loop.time() - 1)
    await asyncio.wait_for(rang.wait(), 20)
