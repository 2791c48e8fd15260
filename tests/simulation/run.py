"""One run: the steps of a plan, the end of all faults, then what a person does to bring sites together."""

from __future__ import annotations

from dataclasses import dataclass

from tests.simulation.actions import Actions
from tests.simulation.epilogue import epilogue
from tests.simulation.reunite import reunite
from tests.simulation.schedule import FAULT_KINDS, Plan
from tests.simulation.violation import Violation
from tests.simulation.world import World


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `violation` is '' when everything held."""

    seed: int
    violation: str
    trace: str
    simulated_seconds: float
    host_operations: int
    faults: int
    counts: dict[str, int]
    story: tuple[str, ...] = ()


def run(plan: Plan, *, story: bool = False) -> Outcome:
    """Run a plan to its end, or to the first violation."""
    world = World(plan)
    world.tell_story = story
    violation = ""
    actions = Actions(world)
    with world:
        try:
            world.start()
            for step in plan.steps:
                world.clock.at(step.time, lambda step=step: actions.perform(step), world)  # type: ignore[misc]
            world.run_for((plan.steps[-1].time if plan.steps else 0.0) + 0.5)
            actions.enough_faults()
            actions.end_of_faults()
            for scene in world.scenes:
                reunite(scene)
            if actions.enough_operations():
                for scene in world.scenes:
                    reunite(scene)
            for scene in world.scenes:
                scene.tell("converged")
            for scene in world.scenes:
                epilogue(scene, rot=plan.rot)
        except Violation as broken:
            violation = f"at {world.clock.now:.3f} s: {broken}"
        return Outcome(
            plan.seed,
            violation,
            world.trace_digest,
            world.clock.now,
            sum(sum(scene.hosts.counts.values()) for scene in world.scenes),
            actions.faults,
            _counts(world, plan),
            tuple(world.story),
        )


def _counts(world: World, plan: Plan) -> dict[str, int]:
    counts: dict[str, int] = {}
    for step in plan.steps:
        if step.kind in FAULT_KINDS:
            counts[step.kind] = counts.get(step.kind, 0) + 1
    for scene in world.scenes:
        for kind, count in (*scene.hosts.counts.items(), *scene.operators.counts.items()):
            counts[kind] = counts.get(kind, 0) + count
    return counts
