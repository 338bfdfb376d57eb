"""How unequally a model treats groups of examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from isoloss.arguments import check_fields, whole
from isoloss.errors import InputError, unknown
from isoloss.problem import Problem
from isoloss.regularizers.outputs import Outputs, check_inputs
from isoloss.regularizers.regularizer import Combinable, Regularizer

NAMES = {"demographic": "parity_gap", "equal_opportunity": "opportunity_gap"}
"""Shown in tables, by kind."""


@dataclass(frozen=True, eq=False)
class ParityGap(Combinable):
    """The squared difference between the rates at which groups are predicted the positive class.

    A group's rate is the mean over it of the predicted probability, so that the gap is smooth; of
    more than two groups, the mean over all pairs. R = gap^2, whose root is in units of
    probability: hold R below 0.05^2 for a gap of 0.05. It is 0 at parity, and its slope too, so end
    a walk toward it by `Stop(regularizer_below=...)`, which ends the low side alone of `extent`.
    Rates of probabilities and those of classes (their argmax) are not the same; measure those as
    well.

    Args:
        inputs: As the model takes them, as for `isoloss.Outputs`.
        groups: The group of each example, shape (n,), whole numbers or booleans.
        kind: `"demographic"`: over all examples of a group (demographic parity);
            `"equal_opportunity"`: over those of the positive class (Hardt, Price and Srebro,
            NeurIPS 2016), which needs `targets`.
        targets: The class of each example, shape (n,), for `"equal_opportunity"`.
        positive: Which class is the positive one.
        probability: From the model's outputs to the probability of the positive class, shape (n,).
            None takes the outputs as logits: softmax of shape (n, classes), sigmoid of shape (n,)
            or (n, 1).

    Raises:
        InputError: A value cannot be used: fewer than two groups, a length that is not that of the
            groups, a group without an example that counts, targets missing or not needed.
    """

    inputs: Any
    groups: Tensor
    kind: str = "demographic"
    _: KW_ONLY
    targets: Tensor | None = None
    positive: int = 1
    probability: Callable[[Any], Tensor] | None = None

    def __post_init__(self) -> None:
        """Look at what can be looked at without a model."""
        check_fields(self)
        whole("positive", self.positive)
        if self.kind not in NAMES:
            raise unknown("kind of ParityGap", self.kind, NAMES)
        _check_labels("groups", self.groups)
        if (self.targets is None) == (self.kind == "equal_opportunity"):
            needed = "needs the class of each example" if self.targets is None else "takes none"
            raise InputError(
                f"targets of ParityGap must fit its kind, and kind={self.kind!r} {needed}; "
                + ("give targets=" if self.targets is None else "leave targets out")
            )
        if self.targets is not None:
            _check_labels("targets", self.targets)
            if len(self.targets) != len(self.groups):
                raise InputError(
                    f"targets of ParityGap must be as many as groups, got {len(self.targets)} and "
                    f"{len(self.groups)}"
                )
        self._shares()  # refuses groups that cannot be compared
        check_inputs("ParityGap", self.inputs)

    @property
    def name(self) -> str:
        """The name shown in tables."""
        return NAMES[self.kind]

    def bind(self, problem: Problem) -> Regularizer:
        """The regularizer for a problem's model.

        Raises:
            InputError: The outputs are not logits of shape (n, classes), (n, 1) or (n,), or
                `probability` does not give shape (n,).
        """
        shares = self._shares().to(problem.device, problem.dtype)

        def gap(outputs: Any) -> Tensor:
            rates = shares @ self._checked(self._chances(outputs))
            pairs = combinations(rates.unbind(), 2)
            return torch.stack([(one - other).square() for one, other in pairs]).mean()

        return Outputs(self.inputs, gap, self.name).bind(problem)

    def _shares(self) -> Tensor:
        """How much each example counts in each group's rate, shape (groups, n)."""
        counts = torch.ones_like(self.groups, dtype=torch.bool)
        if self.targets is not None:
            counts = self.targets.to(self.groups.device) == self.positive
        labels = self.groups.unique()
        if len(labels) < 2:
            raise InputError(
                f"groups of ParityGap must hold two groups at least, got {labels.tolist()} alone; "
                f"give the group of each example"
            )
        members = torch.stack([(self.groups == label) & counts for label in labels]).double()
        sizes = members.sum(1, keepdim=True)
        if not sizes.all():
            empty = labels[(sizes == 0).flatten()].tolist()
            raise InputError(
                f"group {empty[0]} of ParityGap has no example of the positive class "
                f"{self.positive}, so that it has no rate; leave that group out, or give positive="
            )
        return members / sizes

    def _chances(self, outputs: Any) -> Any:
        if self.probability is not None:
            return self.probability(outputs)
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            raise InputError(
                "ParityGap takes outputs that are one tensor of logits; give probability=, a "
                "function of the outputs"
            )
        if outputs.ndim == 1 or outputs.shape[1:] == (1,):
            logits = outputs.flatten()
            return torch.sigmoid(logits if self.positive == 1 else -logits)
        if outputs.ndim != 2 or outputs.shape[1] <= self.positive:
            raise InputError(
                f"ParityGap takes logits of shape (n, classes), (n, 1) or (n,) with a class "
                f"{self.positive}, got {tuple(outputs.shape)}; give probability=, a function of "
                f"the outputs"
            )
        return outputs.softmax(1)[:, self.positive]

    def _checked(self, chances: Any) -> Tensor:
        if not isinstance(chances, Tensor) or chances.shape != self.groups.shape:
            gave = tuple(chances.shape) if isinstance(chances, Tensor) else type(chances).__name__
            raise InputError(
                f"ParityGap must have one probability for each of the {len(self.groups)} examples "
                f"that groups tells of, got {gave}; give inputs and groups of the same examples"
            )
        return chances


def _check_labels(name: str, labels: Tensor) -> None:
    if labels.ndim != 1 or labels.is_floating_point() or not len(labels):
        raise InputError(
            f"{name} of ParityGap must hold one whole number for each example, shape (n,), got "
            f"{labels.dtype} of shape {tuple(labels.shape)}; convert them with .long()"
        )
