"""The event loop of a storage subsystem: the real `target.scheduler.Scheduler`.

One thread owns all state. A turn is: wait for events, run their handlers, run finished background work,
timers and deferred calls, then the two phases that make the write path fast: every `at_append` call (one
journal write for all writes of the turn), then every `at_send` call (one `sendmsg` for all answers of a
connection). Because sending comes last, an answer never overtakes the journal write it reports.

An exception out of a handler ends `run`: with one owner of all state there is nobody who could vouch for
the rest of it. What the outside world can provoke is caught where it enters (`target.iscsi.portal`).
"""

from __future__ import annotations

import contextlib
import heapq
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

Call = Callable[[], object]
_Job = tuple[Callable[[], Any], Callable[[Any, Exception | None], None]]

_READ = select.EPOLLIN | select.EPOLLRDHUP
_READ_ANY = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_WRITE_ANY = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR

READ_LANE = "read"
READ_LANE_THREADS = 4

_SPIN_SECONDS_MAX = 150e-6
_SPIN_WEIGHT = 1 / 8
"""Waking a blocked thread costs as much as a command does, so with one command outstanding it is worth
polling for the next one: as long as the recent gaps between turns were shorter than `_SPIN_SECONDS_MAX` on
average (each counts `_SPIN_WEIGHT`), and no worker has anything to do, which would have to fight for the
interpreter.
"""


class LoopTimer:
    """A pending call of `Loop.call_later`."""

    __slots__ = ("call",)

    def __init__(self, call: Call | None) -> None:
        self.call = call

    def cancel(self) -> None:
        self.call = None


class _Watch:
    """What is registered for one file descriptor."""

    __slots__ = ("on_readable", "on_writable", "readable", "writable")

    def __init__(self, on_readable: Call, on_writable: Call | None) -> None:
        self.on_readable = on_readable
        self.on_writable = on_writable
        self.readable = True
        self.writable = False

    @property
    def mask(self) -> int:
        return (_READ if self.readable else 0) | (select.EPOLLOUT if self.writable else 0)


class Loop:
    """One thread, epoll, timers, and worker threads for work that blocks."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watches: dict[int, _Watch] = {}
        self._timers: list[tuple[float, int, LoopTimer]] = []
        self._timer_count = 0
        self._soon: list[Call] = []
        self._append: list[Call] = []
        self._send: list[Call] = []
        self._lanes: dict[str, SimpleQueue[_Job | None]] = {}
        self._threads: list[threading.Thread] = []
        self._finished: deque[Call] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._asleep = False
        self._running = False
        self._gap_seconds = 10 * _SPIN_SECONDS_MAX
        self._jobs = 0
        self.monotonic: Callable[[], float] = time.monotonic
        self.wall_ns: Callable[[], int] = time.time_ns

    # Deferred calls and time

    def call_soon(self, call: Call) -> None:
        self._soon.append(call)

    def call_later(self, delay_seconds: float, call: Call) -> LoopTimer:
        timer = LoopTimer(call)
        self._timer_count += 1
        heapq.heappush(self._timers, (self.monotonic() + delay_seconds, self._timer_count, timer))
        return timer

    def at_append(self, call: Call) -> None:
        self._append.append(call)

    def at_send(self, call: Call) -> None:
        self._send.append(call)

    def call_from_thread(self, call: Call) -> None:
        """Call on the loop thread; the one method that any thread, or a signal handler, may use."""
        self._finished.append(call)
        # Only a loop that is about to block, or does, needs the write: it looks at `_finished` after saying
        # so.
        if self._asleep:
            os.eventfd_write(self._wake_fd, 1)

    # Background work

    def submit(
        self, lane: str, work: Callable[[], T], done: Callable[[T | None, Exception | None], None]
    ) -> None:
        queue = self._lanes.get(lane)
        if queue is None:
            queue = self._open_lane(lane)
        self._jobs += 1
        queue.put((work, done))

    def _open_lane(self, lane: str) -> SimpleQueue[_Job | None]:
        queue = self._lanes[lane] = SimpleQueue()
        for number in range(READ_LANE_THREADS if lane == READ_LANE else 1):
            thread = threading.Thread(
                target=self._work, args=(queue,), name=f"lane-{lane}-{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return queue

    def _work(self, queue: SimpleQueue[_Job | None]) -> None:
        while (job := queue.get()) is not None:
            work, done = job
            result: Any = None
            error: Exception | None = None
            try:
                result = work()
            except Exception as caught:  # the loop thread's `done` decides what it means
                error = caught
            self.call_from_thread(_Completion(self, done, result, error))
            del job, work, done, result, error  # nothing is kept alive while this thread waits
        queue.put(None)  # for the lane's other threads

    # File descriptors

    def register(self, fd: int, on_readable: Call, on_writable: Call | None = None) -> None:
        """Watch `fd` for reading. `on_writable` is called while `watch_writable` is on. Level-triggered."""
        watch = _Watch(on_readable, on_writable)
        self._watches[fd] = watch
        self._epoll.register(fd, watch.mask)

    def watch_readable(self, fd: int, wanted: bool) -> None:
        """Switch reading off for a connection that is to be slowed down, and on again."""
        watch = self._watches[fd]
        if watch.readable != wanted:
            watch.readable = wanted
            self._epoll.modify(fd, watch.mask)

    def watch_writable(self, fd: int, wanted: bool) -> None:
        watch = self._watches[fd]
        if watch.writable != wanted:
            watch.writable = wanted
            self._epoll.modify(fd, watch.mask)

    def unregister(self, fd: int) -> None:
        """Forget `fd`, before it is closed; unknown descriptors are ignored."""
        if self._watches.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    # Running

    def run(self) -> None:
        """Turn until `stop` is called. May be called again afterwards."""
        self._running = True
        while self._running:
            self.turn()

    def stop(self) -> None:
        """End `run` after the current turn; on the loop thread (use `call_from_thread` elsewhere)."""
        self._running = False

    def close(self) -> None:
        """End the worker threads, after what was submitted, and close the descriptors. Not while running."""
        for queue in self._lanes.values():
            queue.put(None)
        for thread in self._threads:
            thread.join()
        self._lanes.clear()
        self._threads.clear()
        self._epoll.close()
        os.close(self._wake_fd)

    def turn(self, timeout_seconds: float | None = None) -> None:
        """One turn; waits for at most `timeout_seconds` (None: as long as it takes) for something to do."""
        for fd, events in self._wait(timeout_seconds):
            watch = self._watches.get(fd)
            if watch is None:
                if fd == self._wake_fd:
                    os.eventfd_read(fd)
                continue  # or it was unregistered by an earlier handler of this turn
            if watch.writable and events & _WRITE_ANY and watch.on_writable is not None:
                watch.on_writable()
                if self._watches.get(fd) is not watch:
                    continue
            if events & _READ_ANY and (watch.readable or not watch.writable):
                # A hang-up is reported even to one who does not read; with nothing to write, reading
                # reveals it.
                watch.on_readable()
        finished = self._finished
        if finished:
            for _ in range(len(finished)):
                finished.popleft()()
        if self._timers:
            self._run_timers()
        if self._soon:
            calls, self._soon = self._soon, []
            for call in calls:
                call()
        if self._append:
            calls = self._append
            for (
                call
            ) in calls:  # the list may grow meanwhile: a call may ask for another one in the same phase
                call()
            calls.clear()
        if self._send:
            calls = self._send
            for call in calls:
                call()
            calls.clear()

    def _run_timers(self) -> None:
        timers = self._timers
        now = self.monotonic()
        while timers and timers[0][0] <= now:
            call = heapq.heappop(timers)[2].call
            if call is not None:
                call()

    def _wait(self, timeout_seconds: float | None) -> list[tuple[int, int]]:
        """Events, spinning briefly after a turn that had some: the next command of a client that waits for
        each answer arrives within microseconds. An idle loop blocks and burns nothing."""
        timers = self._timers
        while timers and timers[0][2].call is None:
            heapq.heappop(timers)
        if self._soon or self._append or self._send or self._finished:
            return self._epoll.poll(0)
        if timers:
            until_timer = max(0.0, timers[0][0] - self.monotonic())
            if timeout_seconds is None or until_timer < timeout_seconds:
                timeout_seconds = until_timer
        poll = self._epoll.poll
        began = self.monotonic()
        if self._gap_seconds < _SPIN_SECONDS_MAX and not self._jobs and timeout_seconds != 0:
            give_up = began + 2 * self._gap_seconds
            while True:
                events = poll(0)
                if events or self._finished:
                    self._gap_seconds += _SPIN_WEIGHT * (self.monotonic() - began - self._gap_seconds)
                    return events
                if self.monotonic() > give_up:
                    break
        self._asleep = True
        try:
            events = poll(0 if self._finished else timeout_seconds)
        finally:
            self._asleep = False
        gap = min(self.monotonic() - began, 10 * _SPIN_SECONDS_MAX)
        self._gap_seconds += _SPIN_WEIGHT * (gap - self._gap_seconds)
        return events


class _Completion:
    """A finished job on its way to the loop thread."""

    __slots__ = ("_done", "_error", "_loop", "_result")

    def __init__(
        self, loop: Loop, done: Callable[[Any, Exception | None], None], result: Any, error: Exception | None
    ) -> None:
        self._loop = loop
        self._done = done
        self._result = result
        self._error = error

    def __call__(self) -> None:
        self._loop._jobs -= 1
        self._done(self._result, self._error)
