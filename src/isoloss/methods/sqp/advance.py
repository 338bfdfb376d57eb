"""One step of a walk by `SQP`: trials until one lands in the band, lower."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from isoloss.flat import inner
from isoloss.methods.sqp import several
from isoloss.methods.sqp.basis import Array, Basis, padded
from isoloss.methods.sqp.known import Known
from isoloss.methods.sqp.model import Model, Slopes
from isoloss.methods.sqp.several import Rules
from isoloss.methods.sqp.state import SQPState
from isoloss.methods.sqp.subproblem import NONE, RESTORING, Trial
from isoloss.objective import Objective
from isoloss.outcome import Ending, Outcome
from isoloss.point import Change, Origin, Point

LOOSE = 0.15
"""|phi| up to which a trial outside the band becomes a center, from which the step goes on."""
CHAIN = 10
"""Trials in a row that become centers before the next has to land in the band."""
BENT = 0.1
"""KKT residual at the last point below which it has to land at once: what is left is a short way,
where a better center is worth more than a landing costs."""
LANDING = 0.3
"""A landing step is as long as the last would have had to be to end at this share of the band."""
ROUGH = 6
"""Rejections after which a step begins anew from the last point, with a tenth of the radius; after
as many again, what was learned of the bend is forgotten too."""
FAR_INSIDE = 0.2
"""phi below an upper bound from which its gradient is not followed exactly."""
UNPRICED = 0.1
"""Weight of the bend of a constraint without a price, as a share of one that balances all of r."""
AGE = 20
"""Trials after which what is known of phi beforehand is made anew."""
MOST_IDLE = 50
"""Steps without gain after which the walk has stalled."""


@np.errstate(over="ignore", invalid="ignore")  # where R falls without bound, until it overflows
def advance(
    objective: Objective,
    state: SQPState,
    model: Model,
    slopes: Slopes,
    *,
    keep: int,
    max_trials: int,
) -> SQPState:
    """One step from a point on the level set to the next."""
    if state.idle >= MOST_IDLE:
        return _stalled(state, True, f"{MOST_IDLE} steps without gain")
    search = Search(objective, state, model, slopes)
    for _ in range(max_trials):
        search.make_room(keep)
        if (vanished := search.vanished()) is not None:
            return replace(state, ending=Ending(Outcome.GRADIENT_VANISHED, vanished))
        trial = search.propose()
        if not trial.length > search.rounding:
            return _stalled(state, search.finite, "the step is below rounding")
        search.judge(trial, *objective.trial(search.origin, search.shares(trial)))
        if search.landed:
            return search.arrival()
    return _stalled(state, search.finite, f"{max_trials} trials in one step")


@dataclass(frozen=True, slots=True)
class Center:
    """A point about which the model is expanded, inside the band or near it."""

    point: Point
    phi: float
    slopes: Slopes
    rough: float  # the loss as trials compute it
    beside: Array = field(default_factory=lambda: NONE)  # phi of what is held beside the level
    # multipliers at which all gradients balance; none for a level alone
    prices: Array = field(default_factory=lambda: NONE)

    @property
    def phis(self) -> Array:
        """Those of all constraints, the level's first."""
        return np.append(self.phi, self.beside)

    @property
    def multiplier(self) -> float:
        """Least-squares multiplier of the level."""
        return float(self.prices[0]) if len(self.prices) else self.slopes.multiplier

    def padded(self, size: int) -> Center:
        slopes = self.slopes.padded(size)
        return self if slopes is self.slopes else replace(self, slopes=slopes)


class Search:
    """What changes during one step: the center, the model, the radius."""

    def __init__(self, objective: Objective, state: SQPState, model: Model, slopes: Slopes) -> None:
        self.objective, self.state, self.model = objective, state, model
        loss = state.point.loss
        rough = loss if state.rough is None else state.rough
        self.plain = state.plain
        self.home = self.here = self.center(state.point, state.phi(loss), slopes, rough)
        self.prices = np.array(state.prices)
        self.offset = state.phi(loss) - state.phi(rough)  # of phi from what trials compute
        self.radius, self.multiplier = state.radius, state.multiplier
        self.landing = math.inf  # longest step that is expected to end in the band
        self.loose = max(LOOSE, 2 * state.rtol)
        self.rejected = 0  # since the last center that was reached by a long trial
        self.centers = self.tried = 0
        self.restoring = False
        self.finite = True
        self.landed = False
        theta = state.point.theta
        self.moved = 0.0  # how far the last trial is from the last point of the path
        self.eps = torch.finfo(theta.dtype).eps
        size = state.point.norm if model.basis.metric is None else math.sqrt(slopes.r @ slopes.r)
        self.rounding = 4 * self.eps * size

    @cached_property
    def rules(self) -> Rules:
        """What all constraints ask for."""
        return self.state.rules

    def make_room(self, keep: int) -> None:
        """Turn the basis into a smaller one where the next trial might not find room."""
        known = self.model.known
        needed = 3 if known else 2  # each trial adds its change, and what is known a direction
        full = self.model.basis.room < needed + len(self.state.beside)
        if full:
            held = [self.here.slopes, self.home.slopes.padded(self.model.basis.size)]
            ranks = self.objective.ranks
            # what few rows do not know has to be kept
            most = keep // 2 if known and known.rows.factored else keep
            self.model, held = self.model.compressed(most, held, self._weights(), ranks)
            self.here = replace(self.here, slopes=held[0])
            self.home = replace(self.home, slopes=held[1])
        if known and (full or known.trials >= AGE):
            self._take(informed(self.objective, self.state, self.model, self.here, self.multiplier))

    def propose(self) -> Trial:
        """The best trial that the model knows of."""
        here = self.here
        if not self.plain:
            return self._propose_for_all()
        longest, gap = min(self.radius, self.landing), 0.003 * self.state.rtol
        trial = self.model.trial(here.slopes, here.phi, longest, self.multiplier, gap)
        # a step that only restores phi has no sane multiplier: the last one, or least squares'
        estimate = here.multiplier
        self.restoring = not abs(trial.multiplier) <= 1e3 * abs(estimate)
        if not self.restoring:
            self.multiplier = trial.multiplier
        elif not self.multiplier * estimate > 0:
            self.multiplier = estimate
        return trial

    def _propose_for_all(self) -> Trial:
        """The same where more than a level is held."""
        here, size = self.here, self.model.basis.size
        rows = np.vstack([padded(one, size) for one in here.slopes.every[1:]])
        back = several.shortest(rows, self.rules.missed(here.phis))
        longest = max(min(self.radius, self.landing), RESTORING * back)
        last = np.append(self.multiplier, self.prices)
        # of an upper bound that the center is inside of, the last price is the better guess
        alike = (last * here.prices > 0) | ~self.rules.free
        start = np.where(alike & (abs(last) > abs(here.prices)), last, here.prices)
        trial = several.trial(self.model, here.slopes, here.phis, self.rules, longest, start)
        found = np.append(trial.multiplier, trial.beside)
        most = 1e3 * np.linalg.norm(here.slopes.r)
        sane = (abs(found) * np.linalg.norm(rows, axis=1) <= most).all()
        found = found if sane else here.prices
        self.multiplier, self.prices = float(found[0]), found[1:]
        return trial

    def _weights(self) -> Array:
        """What the bend of each constraint counts; none where a level alone is held."""
        if self.plain:
            return NONE
        slopes = self.here.slopes
        sizes = np.array([np.linalg.norm(one) or 1.0 for one in slopes.every[1:]])
        return np.maximum(abs(self.here.prices), UNPRICED * np.linalg.norm(slopes.r) / sizes)

    def vanished(self) -> str | None:
        """Which gradient vanished of those that a step needs, None for none, "" for the level's."""
        slopes = self.here.slopes
        if self.plain:
            return None if slopes.a.any() else ""
        names = ["", *(bound.name for bound in self.objective.held)]
        needed = self.rules.free | (self.here.phis > self.rules.tols)
        for name, need, slope in zip(names, needed, slopes.every[1:], strict=True):
            if need and not np.any(slope):
                return name and f"that of {name} vanished"
        return None

    @property
    def origin(self) -> Origin:
        """From where the next trial starts."""
        here, home, basis = self.here, self.home.point.theta, self.model.basis
        logs = self.state.scale is None and not self.state.upper
        unit = here.rough if logs else None
        return Origin(here.point, home, basis.rows.values, basis.inverse, unit, basis.metric)

    def shares(self, trial: Trial) -> Array:
        """How much of each of the origin's rows a trial goes."""
        return self.model.basis.shares(trial.step)

    def judge(self, trial: Trial, there: Point, change: Change) -> None:
        """Learn from an evaluated trial, then land, go on from it or reject it."""
        self.finite = self.state.admits(there)
        self.tried += 1
        if not self.finite:
            self.radius = 0.25 * min(self.radius, trial.length)
            self._reject()
            return
        here, self.moved = self.here, change.distance
        rough, phi = there.loss, self.state.phi(there.loss) + self.offset
        if self.objective.rough and abs(phi) <= self.state.rtol:
            there = self.objective.strict(there)
            phi = self.state.phi(there.loss)
            self.offset = phi - self.state.phi(rough)
        modeled = self.model.fall(here.slopes, trial.step)
        modeled += self.multiplier * (here.phi - trial.left)
        if len(self.prices):
            modeled += float(self.prices @ (here.beside - trial.left_beside))
        reached = self.center(there, phi, self.learn(there, trial.step, change), rough)
        self._take(self.model.steered(reached.slopes, self.multiplier))
        here, reached = self.here, reached.padded(self.model.basis.size)
        noise = self._noise(there)
        fallen = here.point.regularizer - there.regularizer + self.multiplier * (here.phi - phi)
        if len(self.prices):
            fallen += float(self.prices @ (here.beside - reached.beside))
        if abs(fallen) <= noise:
            fallen = self._fall_by_slopes(reached.slopes, trial.step)
        missed, before = self._miss(reached), self._miss(here)
        self._trust(trial, missed, fallen / modeled if modeled > 0 else -1.0)

        lower = fallen > (-noise if trial.length < 1e-3 * self.radius else 0)
        landing = self.landing < math.inf
        nearer = (landing or self.restoring) and missed < 0.5 * before
        if missed <= max(self.loose, 0.5 * before) and (lower or nearer):
            self.here = reached
            self.landed = self._lands(reached, noise)
            if not landing:
                self.rejected = 0
                self.centers += 1
            out = self._out(reached)
            if out > self.state.rtol and (landing or not self._goes_on(reached)):
                self.landing = trial.length * math.sqrt(LANDING * self.state.rtol / out)
        else:
            self._reject()

    def _take(self, model: Model) -> None:
        """Go on with a model whose basis may have grown."""
        self.model, self.here = model, self.here.padded(model.basis.size)

    def arrival(self) -> SQPState:
        """The state at the point that was landed on."""
        state, there = self.state, self.here.point
        worth = max(self._noise(there), 1e-8 * self._scale(there))
        nearest = min(state.nearest, there.kkt_residual)
        idle = self._cost(self.here) > -worth and nearest > 0.9 * state.nearest
        return replace(
            state,
            idle=state.idle + 1 if idle else 0,
            nearest=state.nearest if idle else nearest,
            point=there,
            slopes=self.here.slopes,
            model=self.model,
            rough=self.here.rough,
            radius=self.radius,
            multiplier=self.multiplier,
            prices=tuple(self.prices.tolist()),
            kind="sqp",
            step_length=self.moved,
        )

    def learn(self, there: Point, step: Array, change: Change) -> Slopes:
        """Teach the model the change of both gradients; the gradients at the trial."""
        here, model, ranks = self.here, self.model, self.objective.ranks
        seen = [(v, square, model.basis.inverse @ along) for v, square, along in change.seen]
        change_a, basis = model.basis.coordinates(change.vector, seen, ranks)
        unit = self.state.unit(there.loss)
        known = model.known
        if known is not None:
            known = replace(known, trials=known.trials + 1)
            vector = change.vector[None]
            known = known.grown(basis, change_a, lambda rows: rows.products(vector)[0])
        change_a /= unit
        if self.state.upper:  # whose gradients are compared as they are
            drop = self.state.unit(here.rough) / unit - 1
            change_a += drop * padded(here.slopes.a, basis.size)
        if model.curvature is None:
            change_r = model.outside * padded(step, basis.size)
        else:
            bent = there.regularizer_grad - here.point.regularizer_grad
            change_r, basis = basis.coordinates(bent, ranks=ranks)
        changes: list[Array] = []
        beside: list[Array] = []
        for k in range(len(self.state.beside)):
            bent, slope, basis = self._learn_beside(k, there, basis)
            changes.append(bent)
            beside.append(slope)
        self.model = model.learn(basis, step, change_r, change_a, changes, known)
        self.here = here.padded(basis.size)
        before = self.here.slopes
        return Slopes(
            before.r + padded(change_r, basis.size),
            before.a + padded(change_a, basis.size),
            tuple(padded(one, basis.size) for one in beside),
        )

    def _learn_beside(self, k: int, there: Point, basis: Basis) -> tuple[Array, Array, Basis]:
        """The change of a gradient of what is held, and it at the trial, in a basis that may grow.

        An upper bound far from being reached is known within the basis alone, and takes no room.
        """
        state, here = self.state, self.here
        assert here.point.held is not None  # noqa: S101
        assert there.held is not None  # noqa: S101
        unit, old = (float(state.units(point)[k]) for point in (there, here.point))
        grad, before = there.held.grads[k], here.point.held.grads[k]
        change = grad.sub(before, alpha=unit / old)
        phi = state.beside[k].phi(there.held.values[k])
        was_near, is_near = (self._near(k, one) for one in (here.beside[k], phi))
        if was_near and is_near:
            rounding = 4 * self.eps * math.sqrt(inner(grad, grad).item())
            found, basis = basis.coordinates(change, nothing=rounding)
            found = found / unit
            return (
                found,
                padded(here.slopes.beside[k], basis.size) + padded(found, basis.size),
                basis,
            )
        if is_near:
            slope, basis = basis.coordinates(grad)
        else:
            slope = basis.projected(grad)
        return basis.projected(change) / unit, slope / unit, basis

    def _near(self, k: int, phi: float) -> bool:
        """Whether a constraint may have a say in the next steps."""
        return bool(self.rules.free[k + 1]) or phi > -FAR_INSIDE

    def center(self, point: Point, phi: float, slopes: Slopes, rough: float) -> Center:
        """A center with all that is held beside the level."""
        if self.plain:
            return Center(point, phi, slopes, rough)
        beside = self.state.phis(point, phi)[1:]
        return Center(point, phi, slopes, rough, beside, self.state.multipliers(point))

    def _miss(self, center: Center) -> float:
        """By how much the constraint that is missed most is missed."""
        return abs(center.phi) if self.plain else self.rules.miss(center.phis)

    def _out(self, center: Center) -> float:
        """The same by each one's tolerance, in the unit of the level's."""
        return abs(center.phi) if self.plain else self.rules.out(center.phis)

    def _fall_by_slopes(self, there: Slopes, step: Array) -> float:
        """By how much R + lambda phi fell over a step, from its slopes at both ends.

        Where rounding hides the change of the values, that of the gradients is still known (Hager
        and Zhang 2005, section 4, on the same in a line search).
        """
        here, price = self.here.slopes, self.multiplier
        sum_of_slopes = here.r + there.r + price * (here.a + there.a)
        for also, old, new in zip(self.prices, here.beside, there.beside, strict=True):
            sum_of_slopes = sum_of_slopes + also * (old + new)
        return -0.5 * float(sum_of_slopes @ padded(step, len(sum_of_slopes)))

    def _trust(self, trial: Trial, missed: float, ratio: float) -> None:
        """The radius after a trial that missed by so much, with actual over modeled fall."""
        factor = _growth(missed / self.loose, ratio)
        if self.landing < math.inf:  # how well so short a step went says little about a long one
            self.radius *= max(0.5, min(1.0, factor))
        elif factor < 1:
            self.radius = min(self.radius, trial.length * factor)
        elif trial.length > 0.8 * self.radius:
            self.radius = trial.length * factor

    def _goes_on(self, reached: Center) -> bool:
        """Whether the next trial from a center may be a long one as well, and need not land.

        Each landing costs an evaluation or more. It waits while what the walk owes, the price of
        phi, is less than what it has gained since the last point of the path.
        """
        home = self.home
        if not self.plain or self.centers >= CHAIN or self.tried >= CHAIN + ROUGH:
            return False
        if home.point.kkt_residual <= BENT or self.model.basis.metric is not None:
            return False  # a metric is another one at every point of the path
        if self.objective.rough:
            return False  # how far a rounded loss is off is known about that point only
        gained = home.point.regularizer - reached.point.regularizer
        gained += self.multiplier * (home.phi - reached.phi)
        return abs(self.multiplier * reached.phi) < gained

    def _lands(self, reached: Center, noise: float) -> bool:
        """Whether a point may be the next of the path: in the band, and lower."""
        if self._out(reached) > self.state.rtol:
            return False
        if self._out(self.home) > self.state.rtol or self._cost(reached) <= noise:
            return True
        # nearer to the level itself, the price there counts as well
        nearer = self._out(reached) < 0.5 * self._out(self.home)
        return nearer and self._rise(reached, reached) <= noise

    def _cost(self, reached: Center) -> float:
        """By how much R + lambda phi rose since the step began, with the lambda there."""
        return self._rise(reached, self.home)

    def _rise(self, reached: Center, prices: Center) -> float:
        """The same with the lambda of a center."""
        home = self.home
        risen = reached.point.regularizer - home.point.regularizer
        if self.plain:
            return risen + prices.multiplier * (reached.phi - home.phi)
        gone = self.rules.priced(reached.phis) - self.rules.priced(home.phis)
        return risen + float(prices.prices @ gone)

    def _reject(self) -> None:
        self.rejected += 1
        self.landing *= 0.3
        if self.rejected % ROUGH == 0:
            self.here = self.home = self.home.padded(self.model.basis.size)
            self.radius, self.landing = 0.1 * self.radius, math.inf
        if self.rejected % (2 * ROUGH) == 0:
            self.model = self.model.forgotten()

    def _noise(self, there: Point) -> float:
        return 30 * self.eps * self._scale(there)

    def _scale(self, there: Point) -> float:
        scale = abs(there.regularizer) + abs(self.multiplier)
        return scale + float(abs(self.prices).sum()) if len(self.prices) else scale


def informed(
    objective: Objective, state: SQPState, model: Model, center: Center, price: float
) -> Model:
    """The model with what is known of the Hessian of phi at a center, where anything is, and with
    the direction in which R + price phi falls most; what was learned of the rest stays."""
    point, slopes = center.point, center.slopes
    rows = None
    if state.plain and model.curvature is None and not objective.rough:
        rows = objective.problem.gauss_newton(point.theta)
    if rows is None:
        return replace(model, bend=model.whole, known=None)
    scaled = rows.scaled(1 / state.unit(center.rough))
    slope = slopes.a if state.scale is None else np.zeros_like(slopes.a)
    known = Known(scaled, model.basis.images(scaled), slope)
    return replace(model, known=known).steered(slopes, price)


def _growth(error: float, ratio: float) -> float:
    """Factor of the radius, from |phi| over what is allowed and actual over modeled fall."""
    worst = max(error, (1 - ratio) / 0.9, 1e-9)
    if worst > 1:
        return max(0.15, 0.7 / math.sqrt(worst))
    return min(2.0, max(1.0, 0.6 / math.sqrt(worst)))


def _stalled(state: SQPState, finite: bool, detail: str) -> SQPState:
    outcome = Outcome.STALLED if finite else Outcome.NON_FINITE
    return replace(state, ending=Ending(outcome, detail))
