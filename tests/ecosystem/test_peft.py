"""PEFT: the adapters alone are walked, the model below them is frozen."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.ecosystem.test_transformers import bert, classify, per_sentence, sentences
from tests.ecosystem.walks import trained, walked
from torch import nn

peft = pytest.importorskip("peft")


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_adapters_of_a_classifier(options: dict[str, Any]) -> None:
    data = sentences()
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=3, lora_dropout=0.1, target_modules=["query", "value"], **options
    )
    model: nn.Module = peft.get_peft_model(bert(), config)
    trained(model, classify, data)
    frozen = {k: p.clone() for k, p in model.named_parameters() if not p.requires_grad}
    path = walked(model, per_sentence, data, classify)
    assert all("lora_" in name or "modules_to_save" in name for name in path.shapes)
    assert all(torch.equal(dict(model.named_parameters())[k], p) for k, p in frozen.items())
    merged = copy.deepcopy(model).double().merge_and_unload()
    assert classify(merged, data).item() == pytest.approx(path.level, rel=1e-3)
