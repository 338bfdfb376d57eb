"""lightning, skorch, accelerate, safetensors: a network that something else trained and keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ecosystem.walks import trained, walked
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

datasets = pytest.importorskip("sklearn.datasets")
metrics = pytest.importorskip("sklearn.metrics")


def iris() -> tuple[Tensor, Tensor]:
    inputs, targets = datasets.load_iris(return_X_y=True)
    inputs = torch.tensor(inputs, dtype=torch.float32)
    return (inputs - inputs.mean(0)) / inputs.std(0), torch.tensor(targets)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.2), nn.Linear(20, 3)
    )


def classify(model: nn.Module, data: Any) -> Tensor:
    return cross_entropy(model(data[0]), data[1])


@pytest.mark.parametrize("trainer_attached", [False, True])
def test_a_lightning_module(tmp_path: Path, trainer_attached: bool) -> None:
    lightning = pytest.importorskip("lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, _: int) -> Tensor:
            loss = classify(self, batch)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-2)

    data = iris()
    model = Classifier()
    if trainer_attached:
        trainer = lightning.Trainer(
            max_epochs=5, accelerator="cpu", default_root_dir=tmp_path, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, DataLoader(TensorDataset(*data), batch_size=50))
        model.eval()
    else:
        trained(model, classify, data)
    walked(model, "cross_entropy", data, classify)
    if trainer_attached:
        assert model.trainer is trainer


def test_a_skorch_classifier() -> None:
    skorch = pytest.importorskip("skorch")
    inputs, targets = iris()
    net = skorch.NeuralNetClassifier(
        network(), criterion=nn.CrossEntropyLoss, max_epochs=20, lr=0.1, train_split=None, verbose=0
    )
    net.fit(inputs.numpy(), targets.numpy())
    path = walked(net.module_.eval(), "cross_entropy", (inputs, targets), classify)
    found = metrics.log_loss(targets.numpy(), net.predict_proba(inputs.numpy()))
    assert found == pytest.approx(path.level, rel=1e-3)


def test_a_prepared_model_and_its_file(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    safetensors = pytest.importorskip("safetensors.torch")
    data = iris()
    accelerator = accelerate.Accelerator(cpu=True)
    model = accelerator.prepare(trained(network(), classify, data))
    path = walked(model, "cross_entropy", data, classify)
    safetensors.save_file(path.state_dict(), tmp_path / "end.safetensors")
    fresh = network().eval()
    safetensors.load_model(fresh, tmp_path / "end.safetensors")
    assert classify(fresh, data).item() == pytest.approx(path.level, rel=1e-3)
