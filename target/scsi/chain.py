"""Commands that need several volume calls, written as generators.

A generator yields a step (a volume call that lacks only its `Request`), is sent what the step answered, and
returns the command's result. A `Chain` drives it. Invariant: the command is completed exactly once, with the
generator's result or with the first failure, and volumes that answer at once never deepen the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from target.scsi.command import ScsiCommand, ScsiResult, Status
from target.scsi.sense import Sense
from target.volume import Buffer, Request, VolumeError

Step = Callable[[Request], None]
Steps = Generator[Step, Buffer | None, ScsiResult | Sense]


def check_condition(sense: Sense) -> ScsiResult:
    return ScsiResult(Status.CHECK_CONDITION, (), sense)


class Chain:
    """The `Request` of every step of one command."""

    __slots__ = ("_answer", "_answered", "_command", "_running", "_steps")

    def __init__(self, command: ScsiCommand, steps: Steps) -> None:
        self._command = command
        self._steps = steps
        self._answer: Buffer | None = None
        self._answered = True
        self._running = False

    def run(self) -> None:
        """Go on until a step has not answered yet, or the end."""
        self._running = True
        while self._answered:
            self._answered = False
            try:
                step = self._steps.send(self._answer)
            except StopIteration as end:
                result: ScsiResult | Sense = end.value
                self._command.complete(check_condition(result) if isinstance(result, Sense) else result)
                return
            step(self)
        self._running = False

    def done(self, data: Buffer | None = None) -> None:
        self._answer = data
        self._answered = True
        if not self._running:
            self.run()
        elif data is not None:
            self._command.worked(len(data))

    def failed(self, error: VolumeError) -> None:
        self._steps.close()
        self._command.failed(error)
