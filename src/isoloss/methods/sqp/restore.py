"""The way to where all that is held is met, from a start that does not meet it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from isoloss.constraints import nonnegative
from isoloss.methods.sqp.advance import Search
from isoloss.methods.sqp.basis import padded
from isoloss.methods.sqp.model import Model, Slopes
from isoloss.methods.sqp.several import restoring
from isoloss.methods.sqp.state import SQPState
from isoloss.objective import Objective
from isoloss.outcome import Ending, Outcome

ENOUGH = 0.05
"""Least fall of the sum of misses, as a share of the modeled one, of a step that is taken."""
POOR, GOOD = 0.25, 0.75
"""The same below which the radius shrinks, above which it grows."""
SHORTER, LONGER = 0.3, 2.0
LEAST_GAIN, MOST_IDLE = 1e-3, 20
"""Share by which the sum must fall in a step, and steps in a row that may do less: the constraints
contradict one another then."""
OPPOSED = 0.1
"""Share of the slope of the misses that a constraint takes off by which it holds them back."""
NOTHING = 1e-7
"""Modeled fall, as a share of the sum, that is none."""


@np.errstate(over="ignore", invalid="ignore")  # in trials far out
def step_inside(
    objective: Objective,
    state: SQPState,
    model: Model,
    slopes: Slopes,
    *,
    keep: int,
    trials: int,
    steps: int,
) -> SQPState:
    """One step that lowers the sum of the misses of all constraints.

    Each is modeled as along the walk, and the models' sum is made least within a trust region
    (Fletcher's S l1 QP; Nocedal and Wright, section 18.5).

    Args:
        objective: Evaluates points.
        state: Where the walk is, outside.
        model: What is known of the constraints.
        slopes: The gradients at the point.
        keep: Directions that are kept when the basis is full.
        trials: Most evaluations of this step.
        steps: Most steps.

    Returns:
        The state nearer to where all is met; or the same point, with an ending where none is.
    """
    if state.reached >= steps:
        remedy = f"To go on, raise SQP(max_approach={steps})."
        detail = f"after {steps} steps towards all"
        return replace(state, ending=Ending(Outcome.CONSTRAINT_UNREACHABLE, detail, remedy))
    search, rules = Search(objective, state, model, slopes), state.rules
    total = float(abs(rules.missed(search.here.phis)).sum())
    size, known = state.point.norm or 1.0, True
    for _ in range(trials if state.idle < MOST_IDLE else 0):
        search.make_room(keep)
        here = search.here
        trial, left = restoring(search.model, here.slopes, here.phis, rules, search.radius, size)
        if not total - left > NOTHING * total and known:
            search.model, known = search.model.forgotten(), False
            continue
        if not trial.length > search.rounding or not total - left > NOTHING * total:
            break
        known = True
        there, change = objective.trial(search.origin, search.shares(trial))
        if objective.rough and there.finite:
            there = objective.strict(there)
        if not state.admits(there):
            search.radius = SHORTER * trial.length
            continue
        phi = state.phi(there.loss)
        reached = search.center(there, phi, search.learn(there, trial.step, change), there.loss)
        now = float(abs(rules.missed(reached.phis)).sum())
        gained = (total - now) / (total - left)
        if gained < POOR:
            search.radius = SHORTER * trial.length
        elif gained > GOOD and trial.length > 0.8 * search.radius:
            search.radius = LONGER * trial.length
        if gained > ENOUGH or state.met(there):
            return replace(
                state,
                point=there,
                slopes=reached.slopes,
                model=search.model,
                radius=search.radius,
                on_level=state.met(there),
                kind="correct",
                step_length=change.distance,
                reached=state.reached + 1,
                idle=0 if now < (1 - LEAST_GAIN) * total else state.idle + 1,
            )
    opposed = _opposed(objective, search)
    why = f", held back by {' and '.join(opposed)}" if opposed else ""
    detail = f"after {state.reached} steps towards all{why}"
    return replace(state, ending=Ending(Outcome.CONSTRAINT_UNREACHABLE, detail))


def _opposed(objective: Objective, search: Search) -> list[str]:
    """What is met, and would not be if what is missed were less so."""
    here, rules = search.here, search.rules
    size = search.model.basis.size
    rows = np.vstack([padded(one, size) for one in here.slopes.every[1:]])
    missed = rules.missed(here.phis)
    off = abs(missed) > rules.tols
    wanted = np.sign(missed[off]) @ rows[off]
    there = ~off & (rules.free | (here.phis >= -rules.tols))
    names = np.array(["the loss", *(bound.name for bound in objective.held)])[there]
    if not there.any() or not wanted.any():
        return []
    gram = rows[there] @ rows[there].T
    found = nonnegative(gram, -rows[there] @ wanted, float(wanted @ wanted), rules.free[there])
    weighs = abs(found) * np.sqrt(np.diag(gram)) > OPPOSED * np.linalg.norm(wanted)
    return names[weighs].tolist()
