"""PEFT: the adapters alone are walked, the model below them is frozen."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.ecosystem.test_transformers import bert, classify, per_sentence, sentences
from tests.ecosystem.walks import trained, walked
from torch import nn

import isoloss

peft = pytest.importorskip("peft")


def adapted(**options: Any) -> nn.Module:
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=3, lora_dropout=0.1, target_modules=["query", "value"], **options
    )
    return peft.get_peft_model(bert(), config)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "bias": "lora_only"}])
def test_adapters_of_a_classifier(options: dict[str, Any]) -> None:
    data, model = sentences(), adapted(**options)
    trained(model, classify, data)
    frozen = {k: p.clone() for k, p in model.named_parameters() if not p.requires_grad}
    path = walked(model, per_sentence, data, classify)
    words = ("lora_", "modules_to_save", "query.base_layer.bias", "value.base_layer.bias")
    assert all(any(word in name for word in words) for name in path.shapes)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], before) for name, before in frozen.items())
    merged = copy.deepcopy(model).double().merge_and_unload()
    assert classify(merged, data).item() == pytest.approx(path.level, rel=2e-3)


def test_dora_has_a_gradient_that_is_not_that_of_the_values() -> None:
    """It detaches the norm of each column from the graph, which saves memory in training."""
    data, model = sentences(), adapted(use_dora=True)
    trained(model, classify, data, lr=5e-2)
    with pytest.raises(isoloss.InputError, match=r"gradient of the loss is off .* in .*lora_"):
        isoloss.traverse(isoloss.Problem(model, per_sentence, data), progress=False)
