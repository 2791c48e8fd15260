"""The event loop: the order of a turn, timers, background work, descriptors."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from target.loop import READ_LANE_THREADS, Loop
from target.scheduler import Scheduler


@pytest.fixture
def loop() -> Iterator[Loop]:
    one = Loop()
    yield one
    one.close()


def test_the_loop_is_the_scheduler_of_the_engine(loop: Loop) -> None:
    """Held by the type checker; here the two clocks are looked at."""
    scheduler: Scheduler = loop
    assert scheduler.monotonic() <= scheduler.monotonic()
    assert abs(scheduler.wall_ns() - time.time_ns()) < 10**10


def turn_until(loop: Loop, reached: object) -> None:
    """Turn while `reached()` is false; the test's own timeout is the limit."""
    assert callable(reached)
    while not reached():
        loop.turn(1.0)


def test_a_turn_has_its_order(loop: Loop) -> None:
    order: list[str] = []
    left, right = socket.socketpair()

    def on_readable() -> None:
        right.recv(1)
        order.append("event")
        loop.at_send(lambda: order.append("send"))
        loop.at_append(append)

    def append() -> None:
        order.append("append")
        loop.at_append(lambda: order.append("append asked for in append"))

    loop.register(right.fileno(), on_readable)
    loop.call_soon(lambda: order.append("soon"))
    left.send(b"x")
    loop.turn()
    assert order == ["event", "soon", "append", "append asked for in append", "send"]
    left.close()
    right.close()


def test_what_is_asked_for_while_sending_is_done_without_waiting(loop: Loop) -> None:
    order: list[str] = []
    loop.at_send(lambda: loop.at_append(lambda: order.append("append")))
    loop.turn(0.0)
    assert order == []
    started = time.monotonic()
    loop.turn(30.0)
    assert order == ["append"]
    assert time.monotonic() - started < 10.0


def test_call_soon_from_call_soon_waits_for_the_next_turn(loop: Loop) -> None:
    order: list[int] = []
    loop.call_soon(lambda: loop.call_soon(lambda: order.append(1)))
    loop.turn(0.0)
    assert order == []
    loop.turn(0.0)
    assert order == [1]


def test_timers_fire_in_order_of_their_time(loop: Loop) -> None:
    fired: list[int] = []
    loop.call_later(0.02, lambda: fired.append(2))
    loop.call_later(0.0, lambda: fired.append(1))
    loop.call_later(0.04, lambda: fired.append(3))
    turn_until(loop, lambda: len(fired) == 3)
    assert fired == [1, 2, 3]


def test_a_cancelled_timer_does_not_fire(loop: Loop) -> None:
    fired: list[int] = []
    timer = loop.call_later(0.0, lambda: fired.append(1))
    timer.cancel()
    timer.cancel()
    loop.call_later(0.01, lambda: fired.append(2))
    turn_until(loop, lambda: bool(fired))
    assert fired == [2]


def test_work_runs_elsewhere_and_its_result_comes_back_here(loop: Loop) -> None:
    results: list[tuple[object, object, bool]] = []
    here = threading.get_ident()
    loop.submit(
        "lane",
        lambda: threading.get_ident() != here,
        lambda result, error: results.append((result, error, threading.get_ident() == here)),
    )
    turn_until(loop, lambda: bool(results))
    assert results == [(True, None, True)]


def test_an_error_of_the_work_is_handed_to_done(loop: Loop) -> None:
    errors: list[Exception | None] = []

    def fail() -> None:
        raise OSError(5, "broken")

    loop.submit("lane", fail, lambda result, error: errors.append(error))
    turn_until(loop, lambda: bool(errors))
    assert isinstance(errors[0], OSError)


def test_a_lane_keeps_its_order(loop: Loop) -> None:
    done: list[int] = []
    for number in range(200):
        loop.submit("lane", partial(int, number), lambda result, error: done.append(result or 0))
    turn_until(loop, lambda: len(done) == 200)
    assert done == list(range(200))


def test_lanes_do_not_wait_for_each_other_and_reads_run_side_by_side(loop: Loop) -> None:
    """All threads of the read lane meet at a barrier while another lane is stuck."""
    barrier = threading.Barrier(READ_LANE_THREADS)
    stuck = threading.Event()
    met: list[object] = []
    loop.submit("slow", stuck.wait, lambda result, error: None)
    for _ in range(READ_LANE_THREADS):
        loop.submit("read", lambda: barrier.wait(30), lambda result, error: met.append(error))
    turn_until(loop, lambda: len(met) == READ_LANE_THREADS)
    assert met == [None] * READ_LANE_THREADS
    stuck.set()


def test_another_thread_can_stop_a_loop_that_waits(loop: Loop) -> None:
    thread = threading.Thread(target=loop.run)
    thread.start()
    loop.call_from_thread(loop.stop)
    thread.join(30)
    assert not thread.is_alive()


def test_calls_of_many_threads_all_arrive(loop: Loop) -> None:
    seen: list[int] = []

    def call(start: int) -> None:
        for number in range(start, start + 500):
            loop.call_from_thread(partial(seen.append, number))

    threads = [threading.Thread(target=call, args=(start,)) for start in (0, 500, 1000)]
    for thread in threads:
        thread.start()
    turn_until(loop, lambda: len(seen) == 1500)
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(1500))


def test_writable_is_told_only_while_wanted(loop: Loop) -> None:
    left, right = socket.socketpair()
    told: list[str] = []
    loop.register(right.fileno(), lambda: told.append("read"), lambda: told.append("write"))
    loop.turn(0.0)
    assert told == []
    loop.watch_writable(right.fileno(), True)
    loop.turn(0.0)
    assert told == ["write"]
    loop.watch_writable(right.fileno(), False)
    loop.turn(0.0)
    assert told == ["write"]
    left.close()
    right.close()


def test_readable_can_be_switched_off(loop: Loop) -> None:
    left, right = socket.socketpair()
    told: list[str] = []
    loop.register(right.fileno(), lambda: told.append("read"))
    left.send(b"x")
    loop.watch_readable(right.fileno(), False)
    loop.turn(0.0)
    assert told == []
    loop.watch_readable(right.fileno(), True)
    loop.turn(0.0)
    assert told == ["read"]
    left.close()
    right.close()


def test_a_descriptor_unregistered_in_the_turn_is_not_called(loop: Loop) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    called: list[int] = []

    def handler(own: int, other: int) -> None:
        called.append(own)
        loop.unregister(pairs[other][1].fileno())

    for own, (left, right) in enumerate(pairs):
        loop.register(right.fileno(), partial(handler, own, 1 - own))
        left.send(b"x")
    loop.turn(1.0)
    assert len(called) == 1
    loop.unregister(999_999)
    for left, right in pairs:
        left.close()
        right.close()


def test_an_idle_loop_burns_no_time(loop: Loop) -> None:
    """After the brief spin that follows a busy turn it blocks."""
    left, right = socket.socketpair()
    loop.register(right.fileno(), lambda: right.recv(1))
    left.send(b"x")
    loop.turn(1.0)
    before = time.thread_time()
    loop.turn(0.3)
    loop.turn(0.3)
    assert time.thread_time() - before < 0.1
    left.close()
    right.close()


def test_an_exception_ends_the_run(loop: Loop) -> None:
    def fail() -> None:
        raise ValueError("a mistake of ours")

    loop.call_soon(fail)
    with pytest.raises(ValueError, match="mistake"):
        loop.run()


def test_close_ends_the_threads_and_gives_descriptors_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    one = Loop()
    done: list[object] = []
    one.submit("read", lambda: 1, lambda result, error: done.append(result))
    one.submit("lane", lambda: 1, lambda result, error: done.append(result))
    turn_until(one, lambda: len(done) == 2)
    one.close()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == before
