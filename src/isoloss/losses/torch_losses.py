"""torch's own loss objects, held at what their own reduction gives over the whole data."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from isoloss.errors import InputError, kind, one_line
from isoloss.losses.shared import ComparingLoss, check_same_shape, is_tensor, no_class

ELEMENTWISE = (
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss,
    nn.KLDivLoss, nn.PoissonNLLLoss, nn.SoftMarginLoss,
)  # fmt: skip
"""They give a number for each entry of the targets."""
OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)
"""They give a number for each position, and their mean is one by the weights of the classes."""
OF_ROWS = (nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.MultiLabelSoftMarginLoss)
"""They give a number for each example."""


class OwnTensors:
    """A user's module of (outputs, targets), its tensors of the outputs' type on their device."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._copies: dict[tuple[torch.dtype, torch.device], nn.Module] = {}

    def __call__(self, outputs: Any, targets: Any, /) -> Tensor:
        """The loss of each example."""
        like = outputs if is_tensor(outputs) and outputs.is_floating_point() else None
        return (self.module if like is None else self.like(like))(outputs, targets)

    def like(self, tensor: Tensor) -> nn.Module:
        """The module in a tensor's type on its device: itself where it is so."""
        dtype, device = tensor.dtype, tensor.device
        own = [*self.module.parameters(), *self.module.buffers()]
        if all(t.device == device and (t.dtype == dtype or not t.is_floating_point()) for t in own):
            return self.module
        if (dtype, device) not in self._copies:
            made = copy.deepcopy(self.module).to(device=device, dtype=dtype)
            self._copies[dtype, device] = made
        return self._copies[dtype, device]


class TorchLoss(OwnTensors, ComparingLoss):
    """The sums of the numbers that a loss object of torch's gives for each example, in float64."""

    def __init__(self, given: nn.Module) -> None:
        module = copy.deepcopy(given)
        self.reduction = str(module.reduction)
        self.ignores = False  # whether there are targets that do not count
        module.__dict__["reduction"] = "none"
        super().__init__(module)

    @property
    def title(self) -> str:
        """Its name for people."""
        return type(self.module).__name__

    def __call__(self, outputs: Any, targets: Any, /) -> Tensor:
        """The sum of each example's numbers; where there is no reduction, they themselves."""
        if isinstance(self.module, ELEMENTWISE):
            check_same_shape(self.title, outputs, targets)
            targets = targets.double()
        elif not is_tensor(outputs) or not is_tensor(targets):
            raise InputError(
                f"{self.title} takes one tensor of outputs and one of targets, not "
                f"{type(outputs).__name__} and {type(targets).__name__}; pass a function of "
                f"(outputs, targets) that gives it what it takes"
            )
        elif targets.is_floating_point():
            targets = targets.double()
        outputs = outputs.double()
        try:
            values = self.like(outputs)(outputs, targets)
        except (IndexError, RuntimeError, ValueError) as error:
            ignored = getattr(self.module, "ignore_index", None)
            raise no_class(outputs, targets, ignored) or InputError(
                f"{self.title} cannot take outputs of shape {tuple(outputs.shape)} with "
                f"{targets.dtype} targets of shape {tuple(targets.shape)} ({one_line(error)}); "
                f"reshape them or convert the targets"
            ) from error
        return values if self.reduction == "none" else values.reshape(len(values), -1).sum(1)

    def check_targets(self, targets: Any) -> None:
        """Refuse weights that belong to the examples, which come in chunks."""
        weight = getattr(self.module, "weight", None)
        if not isinstance(self.module, ELEMENTWISE) or not is_tensor(weight):
            return
        if is_tensor(targets) and weight.ndim >= targets.ndim and len(weight) > 1:
            raise InputError(
                f"{self.title}(weight=...) of shape {tuple(weight.shape)} weighs the examples of a "
                f"batch; give one number per example as Problem(weights=...)"
            )

    def counts(self, targets: Any) -> Tensor | None:
        """What each example adds to the number that its reduction divides by."""
        super().counts(targets)
        if self.reduction != "mean" or isinstance(self.module, OF_ROWS):
            return None
        targets = cast("Tensor", targets)
        entries = math.prod(targets.shape[1:])
        alike = torch.ones(len(targets), dtype=torch.float64, device="cpu")
        if isinstance(self.module, ELEMENTWISE):
            return entries * alike
        if targets.is_floating_point():  # probabilities, unless they are wrong
            return entries // targets.shape[1] * alike if targets.ndim > 1 else None
        module = cast("nn.CrossEntropyLoss", self.module)
        counted = targets != module.ignore_index
        self.ignores = self.ignores or not bool(counted.all())
        share = counted.double()
        if module.weight is not None:
            weight = module.weight.double().to(targets.device)
            share = share * weight[targets.clamp(0, len(weight) - 1)]
        return share.reshape(len(targets), -1).sum(1)


def module_loss(module: nn.Module) -> OwnTensors:
    """The loss of a user's `torch.nn.Module`."""
    if type(module) in (*ELEMENTWISE, *OF_CLASSES, *OF_ROWS):
        return TorchLoss(module)
    if type(module).__module__ == nn.CrossEntropyLoss.__module__:
        raise InputError(
            f"{kind(module)} does not take (outputs, targets) alone; give a function of these "
            f"that calls it with reduction='none'"
        )
    return OwnTensors(module)
