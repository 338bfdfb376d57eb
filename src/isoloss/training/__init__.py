"""Adam for one network or a stack of networks at once: phase 1 and weight decay."""

from isoloss.training.adam import Adam
from isoloss.training.training import Training, TrainingState, check_penalties, train

__all__ = ["Adam", "Training", "TrainingState", "check_penalties", "train"]
