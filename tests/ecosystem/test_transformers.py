"""transformers: padding masks, tied embeddings, outputs as objects, batches with their labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.ecosystem.walks import trained, walked
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

transformers = pytest.importorskip("transformers")

WORDS, LENGTH = 20, 8
SMALL = {
    "vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": LENGTH, "pad_token_id": 0,
}  # fmt: skip


def sentences(count: int = 40) -> tuple[dict[str, Tensor], Tensor]:
    """Tokens of sentences of several lengths, padded, with their masks; is 3 among them?"""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, WORDS, (count, LENGTH), generator=generator)
    lengths = torch.randint(3, LENGTH + 1, (count,), generator=generator)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    tokens = tokens * mask
    return {"input_ids": tokens, "attention_mask": mask}, (tokens == 3).any(1).long()


def bert(attention: str = "sdpa") -> nn.Module:
    config = transformers.BertConfig(**SMALL, attn_implementation=attention)
    return transformers.BertForSequenceClassification(config)


def llama() -> nn.Module:
    """RMS norms computed in float32, rotary positions, grouped heads."""
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=1)
    return transformers.LlamaForSequenceClassification(config)


def classify(model: nn.Module, data: Any) -> Tensor:
    inputs, targets = data
    return model(**inputs, labels=targets).loss


def per_sentence(outputs: Any, targets: Tensor) -> Tensor:
    return cross_entropy(outputs.logits, targets, reduction="none")


CLASSIFIERS = {"bert, eager": lambda: bert("eager"), "bert, sdpa": bert, "llama": llama}


@pytest.mark.parametrize("make", CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_classifiers_of_padded_sentences(make: Callable[[], nn.Module]) -> None:
    data = sentences()
    walked(trained(make(), classify, data, steps=20), per_sentence, data, classify)


def test_a_classifier_of_images() -> None:
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        image_size=8, patch_size=2, num_labels=3,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    images = torch.randn(30, 3, 8, 8)
    data = ({"pixel_values": images}, images.mean((1, 2, 3)).mul(20).long().clamp(-1, 1) + 1)
    walked(trained(model, classify, data), per_sentence, data, classify)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM",
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def t5() -> nn.Module:
    """Encoder and decoder, with relative positions shared between layers."""
    config = transformers.T5Config(
        vocab_size=WORDS, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def masked_words() -> nn.Module:
    """Its embeddings have a padding row, which the tied head trains."""
    return transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    return model(**batch).loss


def whole(model: nn.Module, data: Any) -> Tensor:
    return own_loss(model, data[0])


@pytest.mark.parametrize("make", [gpt2, t5, masked_words], ids=lambda make: make.__name__)
def test_language_models_with_tied_embeddings_by_their_own_loss(
    make: Callable[[], nn.Module],
) -> None:
    """One number for all texts, the mean over their words; labels are in the batch."""
    inputs, _ = sentences()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    data = [{**inputs, "labels": labels}]
    model = trained(make(), whole, data)
    walked(model, own_loss, data, whole)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def audio() -> tuple[nn.Module, dict[str, Tensor]]:
    """Convolutions of a signal, one of them with weight norm."""
    config = transformers.Wav2Vec2Config(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        conv_dim=(8, 8), conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, classifier_proj_size=8,
    )  # fmt: skip
    batch = {"input_values": torch.randn(10, 200), "labels": torch.arange(10) % 2}
    return transformers.Wav2Vec2ForSequenceClassification(config), batch


def series() -> tuple[nn.Module, dict[str, Tensor]]:
    """Batch norm over patches of a time series, whose values are predicted."""
    config = transformers.PatchTSTConfig(
        num_input_channels=2, context_length=16, patch_length=4, patch_stride=4,
        prediction_length=4, d_model=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16,
    )  # fmt: skip
    past, future = torch.randn(20, 20, 2).cumsum(1).split([16, 4], 1)
    batch = {"past_values": past, "future_values": future}
    return transformers.PatchTSTForPrediction(config), batch


@pytest.mark.parametrize("make", [audio, series], ids=lambda make: make.__name__)
def test_signals_by_their_own_loss(
    make: Callable[[], tuple[nn.Module, dict[str, Tensor]]],
) -> None:
    model, batch = make()
    walked(trained(model, whole, [batch]), own_loss, [batch], whole)


def test_batches_with_labels_by_a_loss_for_each_sentence() -> None:
    inputs, labels = sentences()
    whole = {**inputs, "labels": labels}
    data = [{name: t[k : k + 16] for name, t in whole.items()} for k in (0, 16, 32)]

    def each(model: nn.Module, batch: Any) -> Tensor:
        return per_sentence(model(**batch), batch["labels"])

    def plain(model: nn.Module, data: Any) -> Tensor:
        return torch.cat([each(model, batch) for batch in data]).mean()

    walked(trained(bert(), plain, data, steps=20), each, data, plain)


def test_a_language_model_by_a_loss_for_each_text() -> None:
    """Texts weighted by their number of words give the mean over words."""
    inputs, _ = sentences()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    data = (inputs, labels)

    def plain(model: nn.Module, data: Any) -> Tensor:
        return model(**data[0], labels=data[1]).loss

    def per_text(outputs: Any, labels: Tensor) -> Tensor:
        logits, words = outputs.logits[:, :-1].transpose(1, 2), labels[:, 1:]
        losses = cross_entropy(logits, words, reduction="none", ignore_index=-100)
        return losses.sum(1) / words.ne(-100).sum(1)

    words = labels[:, 1:].ne(-100).sum(1)
    walked(trained(gpt2(), plain, data), per_text, data, plain, weights=words)
