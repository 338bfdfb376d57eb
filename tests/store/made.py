"""A path with known content."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from isoloss import Outcome, Path
from isoloss.path import COLUMNS

KINDS = ["start", "predict"]
ZEROS = {name: [0.0, 0.0] for name in COLUMNS}


def made_path(**changes: Any) -> Path:
    """Two steps of three weights, with a buffer; `changes` are fields."""
    path = Path(
        steps=pd.DataFrame({**ZEROS, "step": [0, 1], "kind": KINDS, "loss": [0.5, 0.1]}),
        points=torch.arange(6, dtype=torch.float32).reshape(2, 3) / 3,
        point_steps=[0, 1],
        level=0.1 + 0.2,
        outcome=Outcome.STEP_LIMIT,
        message="Why (how much). What to do.",
        method="paper",
        regularizer="squared_norm",
        shapes={"weight": (1, 2), "bias": (1,)},
        buffers={"norm.running_mean": torch.tensor([1.5]), "points": torch.tensor(7)},
    )
    return replace(path, **changes)
