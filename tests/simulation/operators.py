"""The operators: requests to the agents, as `replctl` sends them, and how a person brings the sites together
again after everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from target.errors import ReplctlError
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.scene import Scene
    from tests.simulation.sim_site import SimSite

ANSWER_SECONDS_MAX = 700.0
"""The sum of the longest timeouts one request goes through."""


class OperatorRequest:
    """One request and its answer."""

    def __init__(self, world: Scene, site: SimSite, op: str, params: dict[str, Any]) -> None:
        self.site = site
        self.op = op
        self.params = params
        self.asked_at = world.clock.now
        self.restarts = site.restarts
        self.agent = site.agent.owner
        self.result: dict[str, Any] | None = None
        self.error: ReplctlError | None = None
        self.ended = False

    def agent_runs(self, name: str) -> bool:
        """Whether a flow of this name is under way where it was asked."""
        return self.site.agent.alive and self.site.agent.manager.flows.doing(self.site.world.group) == name

    def __repr__(self) -> str:
        extra = ", ".join(f"{key} {value}" for key, value in self.params.items() if key != "group")
        return f"<{self.op} at {self.site.name}{': ' + extra if extra else ''}>"


class Operators:
    """Asks, and remembers what is unanswered."""

    def __init__(self, world: Scene) -> None:
        self._world = world
        self.unanswered: list[OperatorRequest] = []
        self.counts: dict[str, int] = {}

    def ask(self, site: SimSite, op: str, **params: Any) -> OperatorRequest:
        """Send a request. An agent that is not there answers nothing, and neither does one that dies."""
        request = OperatorRequest(self._world, site, op, {"group": self._world.group, **params})
        if not site.agent.alive:
            request.ended = True
            return request
        self._world.tell("asked", request)
        self.unanswered.append(request)
        self.counts[op] = self.counts.get(op, 0) + 1

        def reply(result: Any = None, error: ReplctlError | None = None) -> None:
            if request.ended:
                return
            request.ended, request.result, request.error = True, result if error is None else None, error
            self.unanswered.remove(request)
            if error is not None and ("broke off in" in str(error)):
                raise Violation(f"{request}: {error}")
            self._world.tell("told", request)

        site.agent.serve("", op, request.params, reply)
        return request

    def agent_died(self, site: SimSite) -> None:
        """Nobody answers what was asked there any more."""
        for request in list(self.unanswered):
            if request.site is site:
                request.ended = True
                self.unanswered.remove(request)

    def wait(self, request: OperatorRequest) -> OperatorRequest:
        """Run the world until it is answered."""
        end = self._world.clock.now + ANSWER_SECONDS_MAX
        while not request.ended:
            if self._world.clock.now > end:
                raise Violation(f"{request} hangs: it was not answered in {ANSWER_SECONDS_MAX:.0f} s")
            self._world.turn()
        return request

    def status(self, site: SimSite) -> dict[str, Any]:
        """What `group status` and `pair status` show at a site."""
        for _ in range(100):
            shown = self.wait(self.ask(site, "pair.status"))
            if shown.result is not None:
                return shown.result
            self._world.run_for(0.2)
        raise Violation(f"pair status at {site.name} keeps failing: {shown.error}")
