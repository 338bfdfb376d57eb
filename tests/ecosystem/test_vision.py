"""torchvision and timm: batch norm in eval mode, attention, dropout, dicts of outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.ecosystem.walks import trained, walked
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")
datasets = pytest.importorskip("sklearn.datasets")

CLASSES = 10


def digits(count: int = 60, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Handwritten digits of 8 x 8 pixels, and which they are."""
    found = datasets.load_digits()
    images = torch.tensor(found.images[:count], dtype=torch.float32)[:, None] / 8 - 1
    return images.expand(-1, channels, -1, -1).contiguous(), torch.tensor(found.target[:count])


def classify(model: nn.Module, data: Any) -> Tensor:
    return cross_entropy(model(data[0]), data[1])


def shufflenet() -> nn.Module:
    """Batch norm, grouped convolutions, channels shuffled."""
    return torchvision.models.ShuffleNetV2([1, 1, 1], [8, 16, 24, 32, 48], CLASSES)


def densenet() -> nn.Module:
    """Batch norm before each convolution, concatenation, dropout."""
    return torchvision.models.DenseNet(4, (2, 2), 8, drop_rate=0.1, num_classes=CLASSES)


def mobilenet() -> nn.Module:
    """Batch norm, squeeze-and-excitation, hard swish."""
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    layers = [
        InvertedResidualConfig(8, 3, 16, 8, True, "HS", 1, 1, 1.0),
        InvertedResidualConfig(8, 5, 24, 12, True, "RE", 2, 1, 1.0),
    ]
    return MobileNetV3(layers, 32, CLASSES)


def convnext() -> nn.Module:
    """Layer norm over channels, layer scale, stochastic depth."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(12, 16, 1), CNBlockConfig(16, None, 1)], 0.2, 1.0, CLASSES)


def swin() -> nn.Module:
    """Shifted windows with relative positions, read from a buffer of indices."""
    return torchvision.models.SwinTransformer(
        [2, 2], 12, [2, 2], [2, 2], [2, 2], num_classes=CLASSES
    )


def vit() -> nn.Module:
    """`nn.MultiheadAttention`, whose fast path torch takes in eval mode without a gradient."""
    return torchvision.models.VisionTransformer(
        8, 2, 2, 2, 12, 24, dropout=0.1, num_classes=CLASSES
    )


def timm_vit() -> nn.Module:
    """Fused attention, drop path."""
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, embed_dim=16, depth=2, num_heads=2,
        num_classes=CLASSES, drop_rate=0.1, drop_path_rate=0.1,
    )  # fmt: skip


def timm_resnet() -> nn.Module:
    """Batch norm, squeeze-and-excitation, dropout of blocks."""
    return timm.models.ResNet(
        timm.models.resnet.BasicBlock, (1, 1, 1, 1), CLASSES, stem_width=4,
        stem_type="deep", channels=(4, 8, 8, 12), drop_rate=0.1, drop_path_rate=0.1,
        block_args={"attn_layer": "se"},
    )  # fmt: skip


def mixer() -> nn.Module:
    """Layers over patches and over channels."""
    return timm.models.MlpMixer(CLASSES, 8, patch_size=2, num_blocks=2, embed_dim=16)


MODELS = (shufflenet, densenet, mobilenet, convnext, swin, vit, timm_vit, timm_resnet, mixer)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_classifiers_of_images(make: Callable[[], nn.Module]) -> None:
    data = digits()
    model = trained(make(), classify, data)
    walked(model, "cross_entropy", data, classify)


def test_a_segmentation_whose_outputs_are_a_dict() -> None:
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation import FCN
    from torchvision.models.segmentation.fcn import FCNHead

    def per_image(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        return cross_entropy(outputs["out"], targets, reduction="none").mean((1, 2))

    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    model = FCN(IntermediateLayerGetter(layers, {"2": "out"}), FCNHead(8, 3))
    images, _ = digits(20)
    data = (images, (images[:, 0] > 0).long() + (images[:, 0] > 0.9).long())

    def plain(model: nn.Module, data: Any) -> Tensor:
        return cross_entropy(model(data[0])["out"], data[1])

    walked(trained(model, plain, data), per_image, data, plain)
