"""A small transformer that predicts the next character of a sonnet.

Shows a model that is more than a stack of layers, with tied weights (the embedding is also the
head), integer inputs, and a custom loss: one number per example, here the mean over its characters.

    python examples/transformer_text.py [--quick]
"""

import sys

import torch
from torch import nn
from torch.nn import functional

import isoloss

QUICK = "--quick" in sys.argv
LENGTH, WIDTH, HEADS = 16, 32, 4
TEXT = """
Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date;
Sometime too hot the eye of heaven shines,
And often is his gold complexion dimm'd;
And every fair from fair sometime declines,
By chance or nature's changing course untrimm'd;
But thy eternal summer shall not fade,
Nor lose possession of that fair thou ow'st;
Nor shall death brag thou wander'st in his shade,
When in eternal lines to time thou grow'st:
So long as men can breathe or eyes can see,
So long lives this, and this gives life to thee.
"""


class Transformer(nn.Module):
    """One block of causal attention and a dense layer, each with a shortcut."""

    def __init__(self, letters):
        super().__init__()
        self.embedding = nn.Embedding(letters, WIDTH)
        self.position = nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.dense = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, text):
        """Characters, shape (n, LENGTH), to logits, shape (n, LENGTH, letters)."""
        x = self.embedding(text) + self.position
        q, k, v = (
            part.unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, 2)
        )
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        x = x + self.dense(self.norm2(x))
        return x @ self.embedding.weight.T


def loss(logits, following):
    """Mean cross-entropy over the characters of each example, shape (n,)."""
    return functional.cross_entropy(logits.transpose(1, 2), following, reduction="none").mean(1)


torch.manual_seed(0)
letters = sorted(set(TEXT))
codes = torch.tensor([letters.index(letter) for letter in TEXT])
windows = codes.unfold(0, LENGTH + 1, 8 if QUICK else 2)
inputs, following = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

model = Transformer(len(letters))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(60 if QUICK else 300):
    optimizer.zero_grad()
    loss(model(inputs), following).mean().backward()
    optimizer.step()

problem = isoloss.Problem(model, loss, (inputs, following))
path = isoloss.traverse(
    problem, stop=isoloss.Stop(kkt_residual=1e-2, evaluations=40 if QUICK else 300)
)

first, last = path.steps.iloc[0], path.steps.iloc[-1]
print(path)
print(
    f"{problem.size:,} parameters that predict the next character at a loss of "
    f"{path.level:.3f} nats: the squared norm can fall from {first.regularizer:.0f} to "
    f"{last.regularizer:.0f} without changing it."
)
