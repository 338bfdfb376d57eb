"""transformers and PEFT: padding masks, tied embeddings, outputs as objects, adapters alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.ecosystem.walks import trained, walked
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

transformers = pytest.importorskip("transformers")

WORDS, LENGTH = 20, 8


def sentences(count: int = 40) -> tuple[dict[str, Tensor], Tensor]:
    """Tokens of sentences of several lengths, padded, with their masks; is 3 among them?"""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, WORDS, (count, LENGTH), generator=generator)
    lengths = torch.randint(3, LENGTH + 1, (count,), generator=generator)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    tokens = tokens * mask
    return {"input_ids": tokens, "attention_mask": mask}, (tokens == 3).any(1).long()


def bert(**options: Any) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=LENGTH, **options,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def classify(model: nn.Module, data: Any) -> Tensor:
    inputs, targets = data
    return model(**inputs, labels=targets).loss


def per_sentence(outputs: Any, targets: Tensor) -> Tensor:
    return cross_entropy(outputs.logits, targets, reduction="none")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_classifier_of_padded_sentences(attention: str) -> None:
    data = sentences()
    model = trained(bert(attn_implementation=attention), classify, data)
    walked(model, per_sentence, data, classify)


def predict(model: nn.Module, data: Any) -> Tensor:
    inputs, labels = data
    return model(**inputs, labels=labels).loss


def per_text(outputs: Any, labels: Tensor) -> Tensor:
    """The mean over the words of all texts, as the model's own loss: one share for each text."""
    logits, words = outputs.logits[:, :-1], labels[:, 1:]
    losses = cross_entropy(logits.transpose(1, 2), words, reduction="none", ignore_index=-100)
    return losses.sum(1)


def test_a_language_model_with_tied_embeddings() -> None:
    """Each word counts alike: texts are weighted by their number of words to predict."""
    inputs, _ = sentences()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    data = (inputs, labels)
    model = trained(gpt2(), predict, data)
    assert model.lm_head.weight is model.transformer.wte.weight

    def mean(outputs: Any, targets: Tensor) -> Tensor:
        words = targets[:, 1:].ne(-100).sum(1)
        return per_text(outputs, targets) / words

    counts = labels[:, 1:].ne(-100).sum(1).double()
    walked(model, mean, data, predict, weights=counts)
    assert model.lm_head.weight is model.transformer.wte.weight
