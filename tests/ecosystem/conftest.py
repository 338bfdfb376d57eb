"""Models of other libraries: all slow, and what these libraries warn of is their own business."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

OPERATOR = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _declare_operators() -> torch.library.Library | None:
    """On Linux, torchvision as PyPI has it is built for CUDA: beside a CPU build of torch its
    compiled operators are missing, and importing it fails unless they are declared. No model here
    uses them."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(name + OPERATOR)
        return library
    return None


LIBRARY = _declare_operators()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("slow")
            item.add_marker(pytest.mark.filterwarnings("default", "error:::isoloss"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """torch, and NumPy, of which transformers draws masks in training."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
