"""How the loss and its derivatives are computed: one interface, small classes, one choice."""

from isoloss.evaluation.autograd import Autograd
from isoloss.evaluation.choice import Evaluation, choose, measured_size

__all__ = ["Autograd", "Evaluation", "choose", "measured_size"]
