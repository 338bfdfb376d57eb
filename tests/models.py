"""Models of many kinds with their data, each with its loss written out in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tests.problems import F64, generator, normal
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Kind:
    """A model in evaluation mode, float64, its data, and the mean loss as plain torch gives it."""

    model: nn.Module
    loss: Any
    data: tuple[Any, Any]
    plain: Callable[[Any, Any], Tensor]
    forward: Callable[[nn.Module, Any], Any] = lambda model, inputs: model(inputs)


def classes(count: int, of: int, *more: int) -> Tensor:
    return torch.randint(0, of, (count, *more), generator=generator(5))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().double().eval()


class Aligned(nn.Module):
    """Its loss of an alignment has a first derivative in torch, and no second."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.layer(x).log_softmax(-1).expand(2, -1, -1)
        count = len(x)
        labels, lengths = torch.ones(count, 1, dtype=torch.long), torch.full((count,), 2)
        return functional.ctc_loss(
            scores, labels, lengths, lengths // 2, reduction="none"
        ).unsqueeze(1)


class Tied(nn.Module):
    """Embedding and output share one matrix, which a frozen scale multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(1.5), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.mix(self.embed(tokens)).tanh()) * self.scale


class Recurrent(nn.Module):
    """An LSTM with dropout between its layers, read at its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, num_layers=2, batch_first=True, dropout=0.5)
        self.out = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    """A causal transformer that gives logits at every position, classes on axis 1."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.out = nn.Linear(8, 6)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(5))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.layer(self.embed(tokens), src_mask=self.mask, is_causal=True)
        return self.out(hidden).transpose(1, 2)


class TwoInputs(nn.Module):
    """Takes two arguments, by place or by name, one of them integers."""

    def __init__(self) -> None:
        super().__init__()
        self.kind = nn.Embedding(3, 4)
        self.linear = nn.Linear(2, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor, kind: Tensor) -> dict[str, Tensor]:
        hidden = (self.linear(x) + self.kind(kind)).tanh()
        return {"mean": self.out(hidden), "hidden": hidden}


def convolutional() -> nn.Module:
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)]
    model = nn.Sequential(*layers, nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.Flatten())
    model = nn.Sequential(model, nn.Linear(16, 3))
    model.double().train()(normal(20, 2, 8, 8, seed=1))  # gives the batch norm its statistics
    return model


def of_dict(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    error = (outputs["mean"] - targets["y"]).square().sum(1)
    return error + targets["size"] * outputs["hidden"].square().mean(1)


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 4))


X = normal(30, 3, seed=2)


def kinds() -> dict[str, Kind]:
    """All of them, made anew."""
    two = (normal(30, 2, seed=3), classes(30, 3))
    wanted = {"y": normal(30, 2, seed=4), "size": normal(30, seed=6).abs()}

    def plain_dict(outputs: Any, targets: Any) -> Tensor:
        return of_dict(outputs, targets).mean()

    soft = functional.softmax(normal(30, 4, seed=8), 1)
    return {
        "dense": Kind(
            seeded(dense), "cross_entropy", (X, classes(30, 4)), functional.cross_entropy
        ),
        "probabilities": Kind(
            seeded(dense), "cross_entropy", (X, soft), functional.cross_entropy
        ),
        "convolutional": Kind(
            seeded(convolutional),
            "cross_entropy",
            (normal(60, 2, 8, 8, seed=7), classes(60, 3)),
            functional.cross_entropy,
        ),
        "tied and frozen": Kind(
            seeded(Tied), "cross_entropy", (classes(30, 7), classes(30, 7)),
            functional.cross_entropy,
        ),
        "recurrent": Kind(
            seeded(Recurrent), "mse", (normal(30, 6, 3, seed=2), normal(30, 4, seed=3)),
            functional.mse_loss,
        ),
        "attention": Kind(
            seeded(Attention), "cross_entropy", (classes(30, 6, 5), classes(30, 6, 5)),
            functional.cross_entropy,
        ),
        "arguments": Kind(
            seeded(TwoInputs), of_dict, (two, wanted), plain_dict,
            lambda model, inputs: model(*inputs),
        ),
        "keywords": Kind(
            seeded(TwoInputs), of_dict, ({"kind": two[1], "x": two[0]}, wanted), plain_dict,
            lambda model, inputs: model(**inputs),
        ),
        "binary": Kind(
            seeded(dense), "bce_with_logits", (X, classes(30, 2, 4)),
            lambda z, y: functional.binary_cross_entropy_with_logits(z, y.to(F64)),
        ),
        "huber": Kind(
            seeded(dense), "huber", (X, 3 * normal(30, 4, seed=9)), functional.huber_loss
        ),
    }  # fmt: skip
