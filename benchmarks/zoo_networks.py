"""Small networks of the kinds people have, with their data, trained by Adam in seconds."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from isoloss import Problem

TEXT = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having "
    "nothing to do: once or twice she had peeped into the book her sister was reading, but it had "
    "no pictures or conversations in it, and what is the use of a book, thought Alice, without "
    "pictures or conversation? So she was considering in her own mind (as well as she could, for "
    "the hot day made her feel very sleepy and stupid), whether the pleasure of making a "
    "daisy-chain would be worth the trouble of getting up and picking the daisies, when suddenly a "
    "White Rabbit with pink eyes ran close by her. There was nothing so very remarkable in that; "
    "nor did Alice think it so very much out of the way to hear the Rabbit say to itself, Oh dear! "
    "Oh dear! I shall be late!"
)

# ---------------------------------------------------------------- networks


class Attention(nn.Module):
    """Multi-head self-attention; `hidden`, where given, marks what no token may look at."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        n, length, width = x.shape
        parts = self.inner(x).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / math.sqrt(width // self.heads)
        if hidden is not None:
            scores = scores.masked_fill(hidden, -1e4)
        mixed = scores.softmax(-1) @ value
        return self.outer(mixed.transpose(1, 2).reshape(n, length, width))


class Block(nn.Module):
    """A transformer's layer, normalized before each part."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), hidden)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches of 2 x 2 pixels, two layers, the mean of all tokens."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, 2)
        self.places = nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Decoder(nn.Module):
    """A causal language model of two layers whose output weights are its embedding's."""

    def __init__(self, tokens: int, length: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.head = nn.Linear(width, tokens, bias=False)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.head.weight = self.embed.weight
        self.register_buffer("later", torch.ones(length, length).triu(1).bool())

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x) + self.places
        for block in self.blocks:
            y = block(y, self.later)
        return self.head(self.norm(y)).transpose(1, 2)  # classes on axis 1


class Encoder(nn.Module):
    """Two layers over tokens of which 0 is padding, and the mean over those that are none."""

    def __init__(self, tokens: int, length: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width, padding_idx=0)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        padding = x == 0
        y = self.embed(x) + self.places
        for block in self.blocks:
            y = block(y, padding[:, None, None, :])
        there = (~padding).to(y.dtype)[..., None]
        return self.head((self.norm(y) * there).sum(1) / there.sum(1))


class Recurrent(nn.Module):
    """An LSTM over the rows of an image."""

    def __init__(self, hidden: int = 48) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, hidden, batch_first=True), nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Residual(nn.Module):
    """Two 3 x 3 convolutions with a norm after each, and a shortcut."""

    def __init__(self, norm: Callable[[int], nn.Module], before: int, after: int) -> None:
        super().__init__()
        self.stride = 1 if before == after else 2
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = norm(after), norm(after)
        if before != after:
            self.shortcut = nn.Conv2d(before, after, 1, self.stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + (x if self.stride == 1 else self.shortcut(x))).relu()


def resnet(norm: Callable[[int], nn.Module], width: int = 14) -> nn.Module:
    stem = [nn.Conv2d(1, width, 3, 2, 1, bias=False), norm(width), nn.ReLU()]
    blocks = [Residual(norm, width, width), Residual(norm, width, 2 * width)]
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10)]
    return nn.Sequential(*stem, *blocks, *end)


class UNet(nn.Module):
    """One level down and up again, with a skip."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, width, 3, 1, 1)
        self.down = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.bottom = nn.Conv2d(2 * width, 2 * width, 3, 1, 1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.leave = nn.Conv2d(2 * width, width, 3, 1, 1)
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.enter(x))
        y = functional.silu(self.bottom(functional.silu(self.down(x))))
        return self.last(functional.silu(self.leave(torch.cat([x, self.up(y)], 1))))


# ---------------------------------------------------------------- data and training


def digits(count: int) -> tuple[Tensor, Tensor]:
    known = load_digits()
    chosen = torch.randperm(len(known.target))[:count]
    images = torch.tensor(known.images / 8 - 1, dtype=torch.float32)
    return images[chosen, None], torch.tensor(known.target)[chosen]


def vit() -> tuple[nn.Module, str, tuple[Tensor, Tensor]]:
    return ViT(), "cross_entropy", digits(100)


def decoder() -> tuple[nn.Module, str, tuple[Tensor, Tensor]]:
    letters = sorted(set(TEXT))
    codes = torch.tensor([letters.index(letter) for letter in TEXT])
    inputs, targets = codes[:-1].unfold(0, 16, 12), codes[1:].unfold(0, 16, 12)
    return Decoder(len(letters), 16), "cross_entropy", (inputs, targets)


def encoder() -> tuple[nn.Module, str, tuple[Tensor, Tensor]]:
    """Which of four tokens comes first twice in a row or, if none does, the last one."""
    tokens = torch.randint(1, 5, (120, 10))
    lengths = torch.randint(4, 11, (120, 1))
    tokens[torch.arange(10) >= lengths] = 0
    twice = (tokens[:, 1:] == tokens[:, :-1]) & (tokens[:, 1:] > 0)
    place = torch.where(twice.any(1), twice.int().argmax(1), lengths[:, 0] - 1)
    targets = tokens.gather(1, place[:, None])[:, 0] - 1
    return Encoder(5, 10, 4), "cross_entropy", (tokens, targets)


def lstm() -> tuple[nn.Module, str, tuple[Tensor, Tensor]]:
    images, targets = digits(300)
    return Recurrent(), "cross_entropy", (images[:, 0], targets)


def batch_norm() -> tuple[nn.Module, str, tuple[Tensor, Tensor]]:
    return resnet(nn.BatchNorm2d), "cross_entropy", digits(200)


def group_norm() -> tuple[nn.Module, str, tuple[Tensor, Tensor]]:
    return resnet(lambda width: nn.GroupNorm(7, width)), "cross_entropy", digits(200)


def relu() -> tuple[nn.Module, str, tuple[Tensor, Tensor]]:
    images, targets = digits(400)
    hidden = [nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU()]
    model = nn.Sequential(*hidden, nn.Linear(96, 10))
    return model, "cross_entropy", (images.flatten(1), targets)


def unet() -> tuple[nn.Module, str, tuple[Tensor, Tensor]]:
    """Removal of noise."""
    images = digits(80)[0]
    return UNet(), "mse", (images + 0.5 * torch.randn(images.shape), images)


NETWORKS = {
    f.__name__: f for f in (vit, decoder, encoder, lstm, batch_norm, group_norm, relu, unet)
}
EPOCHS = {"encoder": 200, "decoder": 150, "unet": 150}


def fit(
    model: nn.Module,
    function: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    epochs: int = 60,
) -> None:
    """Adam in mini-batches of 25."""
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs)).split(25):
            adam.zero_grad()
            function(model(inputs[batch]), targets[batch]).backward()
            adam.step()


def trained(name: str, seed: int, cache: Path) -> Problem:
    """The network after training in mini-batches, in eval mode."""
    torch.manual_seed(seed)
    model, loss, (inputs, targets) = NETWORKS[name]()
    function = nn.MSELoss() if loss == "mse" else nn.CrossEntropyLoss()
    file = cache / f"{name}-{seed}.safetensors"
    if file.exists():
        load_model(model, file)
    else:
        fit(model, function, inputs, targets, EPOCHS.get(name, 60))
        cache.mkdir(parents=True, exist_ok=True)
        save_model(model, str(file))
    return Problem(model.eval(), loss, (inputs, targets))
