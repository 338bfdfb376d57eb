"""What a GPU gives: evaluations, walks, reduced precision and memory, beside plain torch on it.

    python benchmarks/gpu.py [--device cuda] [--only evaluations stacks resnet memory]

prints four tables, as ratios of times measured in one run on one card. The inputs are random, of
the sizes of the five experiments; the networks are trained on them for a moment, since a walk from
random weights has nowhere to go.

- evaluations: a loss and gradient of all examples by plain torch, called and replayed from a CUDA
  graph, with cuDNN's deterministic kernels too; by isoloss; and on average along a walk by `sqp`.
- stacks: an epoch of weight decay, networks in a stack and one after another in plain torch, with
  the penalty as `weight_decay` of a fused `torch.optim.Adam`.
- resnet: torchvision's ResNet-18 (3x3 stem) on 5,000 images of 32 x 32 in full precision, TF32 and
  bfloat16; evaluations to the same squared norm; and how far the strict loss is from the level.
- memory: vectors of the size of theta that a walk holds beside an evaluation.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import isoloss
from isoloss import Problem, Record, Stop, experiments
from isoloss.training import Training

SHAPES: dict[str, tuple[tuple[int, ...], int | None]] = {
    "IRIS_FF": ((120, 4), 3),
    "MPG_FF": ((314, 9), None),
    "MNIST_FF": ((1000, 784), 10),
    "MNIST_CONV": ((1000, 1, 28, 28), 10),
    "CIFAR10_CONV": ((1000, 3, 32, 32), 10),
}
"""Inputs and classes, None for a number to be predicted."""

Call = Callable[[], Any]


def milliseconds(call: Call, budget: float = 0.4) -> float:
    """Of a call, the least mean of three series."""
    for _ in range(3):
        call()
    means: list[float] = []
    count = 1
    for _ in range(4):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(count):
            call()
        torch.cuda.synchronize()
        means.append((time.perf_counter() - began) / count)
        count = max(1, min(100, int(budget / 3 / means[0])))
    return 1e3 * min(means[1:])


def recorded(call: Call) -> Call:
    """Its kernels in a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def in_plain_torch(model: nn.Module, loss: str, inputs: Tensor, targets: Tensor) -> Call:
    """The loss and its gradient as anyone writes them."""
    parameters = list(model.parameters())

    def call() -> tuple[Tensor, ...]:
        outputs = model(inputs)
        cross = loss == "cross_entropy"
        value = (functional.cross_entropy if cross else functional.mse_loss)(outputs, targets)
        return value, *torch.autograd.grad(value, parameters)

    return call


def trained(call: Call, model: nn.Module, steps: int, rate: float = 1e-3) -> None:
    """Train a model in place by Adam on all examples."""
    adam = torch.optim.Adam(model.parameters(), rate)
    for _ in range(steps):
        for parameter, grad in zip(model.parameters(), call()[1:], strict=True):
            parameter.grad = grad
        adam.step()
    adam.zero_grad()


def along_a_walk(problem: Problem, evaluations: int) -> tuple[float, isoloss.Path]:
    """Milliseconds of an evaluation along a walk by sqp, its first fifth left out."""
    stop = Stop(evaluations=evaluations, kkt_residual=0)
    path = isoloss.traverse(problem, stop=stop, progress=False)
    rows = path.steps[["seconds", "evaluations"]]
    first, last = rows.iloc[len(rows) // 5], rows.iloc[-1]
    took = (last["seconds"] - first["seconds"]) / (last["evaluations"] - first["evaluations"])
    return 1e3 * took, path


def evaluations(device: str) -> None:
    print(
        "\n| ms | plain torch | recorded | deterministic | isoloss | times recorded | walk | more |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, (shape, classes) in SHAPES.items():
        experiment = experiments.get(name)
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(shape, generator=generator).to(device)
        random = torch.randn(shape[0], 1, generator=generator)
        targets = (random * 4).long().abs().clamp(max=classes - 1)[:, 0] if classes else random
        targets = targets.to(device)
        model = experiment.network(0).to(device)
        call = in_plain_torch(model, experiment.loss, inputs, targets)
        trained(call, model, 300)
        plain, replayed = milliseconds(call), milliseconds(recorded(call))
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            repeatable = milliseconds(recorded(call))
        problem = Problem(model, experiment.loss, (inputs, targets))
        theta = problem.current()
        for k in range(3):
            problem.loss_and_grad(theta * (1 + 1e-3 * k))
        own = milliseconds(functools.partial(problem.loss_and_grad, theta))
        walk, path = along_a_walk(problem, 200)
        assert path.steps["evaluations"].iloc[-1] >= 150, (name, path.outcome)
        print(
            f"| {name} | {plain:.3f} | {replayed:.3f} | {repeatable:.3f} | {own:.3f} | "
            f"{own / replayed:.2f} | {walk:.3f} | {walk - own:+.3f} |",
            flush=True,
        )


def stacks(device: str, members: tuple[int, ...] = (14, 210)) -> None:
    print("\n| an epoch, ms | networks | plain torch | stack | times faster | GiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in ("MNIST_CONV", "CIFAR10_CONV"):
        experiment, (shape, classes) = experiments.get(name), SHAPES[name]
        generator = torch.Generator().manual_seed(0)
        inputs = torch.rand(shape, generator=generator).to(device)
        targets = torch.randint(classes or 1, shape[:1], generator=generator).to(device)
        model = experiment.network(0).to(device)
        one = milliseconds(plain_epoch(copy.deepcopy(model), inputs, targets))
        for count in members:
            groups = count // 14  # runs of 14 penalties, each with its draw of examples
            torch.cuda.reset_peak_memory_stats()
            training = Training(
                model,
                experiment.loss,
                inputs.expand(groups, *shape),
                targets.expand(groups, -1),
                penalties=[1e-3] * count,
                own_examples=True,
            )
            theta = torch.cat([p.detach().flatten() for p in model.parameters()])
            state = training.init(theta.expand(count, -1))
            own = milliseconds(functools.partial(training.epoch, state))
            peak = torch.cuda.max_memory_allocated() / 2**30
            print(
                f"| {name} | {count} | {count * one:,.0f} | {own:,.0f} | {count * one / own:.1f} | "
                f"{peak:.1f} |",
                flush=True,
            )
            for note in training.notes:
                print(f"note: {note}")
            del training, state
            gc.collect()
            torch.cuda.empty_cache()


def plain_epoch(model: nn.Module, inputs: Tensor, targets: Tensor) -> Call:
    """Training one network as fast as plain torch does."""
    kernels = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": kernels, "weight_decay": 2e-3}, {"params": biases}]
    adam = torch.optim.Adam(groups, lr=1e-3, eps=1e-7, fused=True)

    def epoch() -> None:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for x, y in zip(inputs.split(32), targets.split(32), strict=True):
                adam.zero_grad()
                functional.cross_entropy(model(x), y).backward()
                adam.step()

    return epoch


def resnet18() -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()
    return model


def resnet(device: str, images: int, evaluations: int) -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(10, (images,), generator=generator).to(device)
    centers = torch.randn(10, 3, 32, 32, generator=generator).to(device)
    noise = torch.randn(images, 3, 32, 32, generator=generator).to(device)
    inputs = 0.3 * centers[targets] + noise
    model = resnet18().to(device)
    sgd = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    for k in range(120):  # with its statistics of batch norm
        rows = torch.arange(128, device=device).add(128 * k) % images
        with torch.autocast("cuda", torch.bfloat16):
            loss = functional.cross_entropy(model(inputs[rows]), targets[rows])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    sgd.zero_grad()
    model.eval()
    print(f"\nResNet-18, {images} images, {evaluations} evaluations")
    print("\n| ms | plain torch | rough | times plain | strict loss too | walk | R | level error |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for precision in ("exact", "tf32", "bf16"):
        last = precision != "exact"
        memory = torch.channels_last if last else torch.contiguous_format
        placed = copy.deepcopy(model).to(memory_format=memory)
        call = in_plain_torch(
            placed, "cross_entropy", inputs.contiguous(memory_format=memory), targets
        )
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = last
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            plain = milliseconds(call)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        del placed, call
        problem = Problem(model, "cross_entropy", (inputs, targets), precision=precision)
        theta = problem.current()
        rough = milliseconds(functools.partial(problem.rough, theta))
        both = milliseconds(functools.partial(problem.loss_and_grad, theta))
        walk, path = along_a_walk(problem, evaluations)
        strict = Problem(model, "cross_entropy", (inputs, targets))
        error = max(abs(strict.loss(point).item() / path.level - 1) for point in path.points)
        norm = path.steps["regularizer"]
        print(
            f"| {precision} | {plain:.1f} | {rough:.1f} | {rough / plain:.2f} | {both:.1f} | "
            f"{walk:.1f} | {norm.iloc[0]:.0f} to {norm.iloc[-1]:.0f} | {error:.1e} |",
            flush=True,
        )
        del problem, strict, path
        gc.collect()
        torch.cuda.empty_cache()


def memory(device: str, size: int = 10_000_000) -> None:
    hidden = size // 102
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, hidden), nn.Tanh(), nn.Linear(hidden, 1)).to(device)
    inputs, targets = torch.randn(16, 100, device=device), torch.randn(16, 1, device=device)
    trained(in_plain_torch(model, "mse", inputs, targets), model, 20, 1e-4)
    problem = Problem(model, "mse", (inputs, targets))
    theta = problem.current()
    for k in range(3):
        problem.loss_and_grad(theta * (1 + 1e-3 * k))
    vector = problem.size * theta.element_size()
    print("\n| vectors of theta | beside an evaluation | promised |\n| --- | ---: | ---: |")
    for most in (16, 40):
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        problem.loss_and_grad(theta)
        alone = torch.cuda.max_memory_allocated()
        stop, record = Stop(evaluations=250, kkt_residual=0, gain=0), Record(points_at_most=2)
        torch.cuda.reset_peak_memory_stats()
        path = isoloss.traverse(
            problem, method=isoloss.SQP(memory=most), stop=stop, record=record, progress=False
        )
        beside = (torch.cuda.max_memory_allocated() - alone) / vector
        spent = path.steps["evaluations"].iloc[-1]
        print(
            f"| memory {most}, {spent} evaluations | {beside:.1f} | {2 * most + 13} |", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="*", default=["evaluations", "stacks", "memory", "resnet"])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--evaluations", type=int, default=40, help="of the walks of ResNet-18")
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name(given.device)}")
    torch.backends.cudnn.allow_tf32 = False  # in plain torch too
    began = time.perf_counter()
    if "evaluations" in given.only:
        evaluations(given.device)
    if "stacks" in given.only:
        stacks(given.device)
    if "memory" in given.only:
        memory(given.device)
    if "resnet" in given.only:
        resnet(given.device, given.images, given.evaluations)
    print(f"\n{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
