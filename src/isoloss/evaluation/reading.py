"""The data as a loss takes them: pairs that are cut into chunks, or batches that stay whole."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from isoloss.data import Chunks, random_state_kept
from isoloss.errors import InputError
from isoloss.evaluation.autograd import losses_of
from isoloss.evaluation.ranks import Ranks
from isoloss.evaluation.shares import check_sampler, check_shares
from isoloss.flat import FlatNetwork, buffers_kept
from isoloss.losses import ComparingLoss, Loss, ModelLoss, TorchLoss


def read_for(
    loss: Loss,
    network: FlatNetwork,
    data: Any,
    weights: Tensor | None,
    *,
    size: int | None,
    channels_last: bool,
    ranks: Ranks,
) -> Chunks:
    """The data as a loss takes them: all, or a rank's share with the divisors of all."""
    check_sampler(data, ranks)
    uncut = isinstance(loss, ModelLoss)
    if uncut and size is not None:
        raise InputError(
            f"chunk_size={size} cannot be had with a loss of (model, batch), which gets the "
            f"batches as they are; give smaller ones, as a list"
        )

    def losses_in(batch: Any) -> int:
        with random_state_kept(), buffers_kept(network.model), torch.enable_grad():
            values = losses_of(cast("ModelLoss", loss), network, batch)
        return len(values) if values.ndim else 0

    chunks = Chunks(
        data,
        weights,
        dtype=network.dtype,
        device=network.device,
        size=size,
        counts=loss.counts if isinstance(loss, ComparingLoss) else None,
        losses_in=losses_in if uncut else None,
        channels_last=channels_last,
    )
    if ranks.count > 1:
        check_shares(ranks, chunks)
        chunks.divisor, chunks.total_weight = ranks.total(
            lambda: (chunks.divisor, chunks.total_weight)
        )
    if isinstance(loss, TorchLoss) and loss.reduction == "sum":
        chunks.divisor = 1.0
    return chunks
