"""Which of torch's kernels an evaluation may use, and how many of its threads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from isoloss._kernels.chain import overruns
from isoloss.errors import InputError, unknown

FIRST_WITH_TF32 = 8  # CUDA's compute capability


PRECISIONS = ("exact", "tf32", "bf16")
"""How exactly a gradient is computed: as the parameters' type says, in products of inputs rounded
to ten bits (TF32), or in bfloat16 wherever torch's autocast takes it for safe."""


def check_precision(precision: str, device: torch.device) -> None:
    """Insist on a precision that a device computes gradients in."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if precision != "tf32":
        return
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
    if major < FIRST_WITH_TF32:
        raise InputError(
            f"precision='tf32' needs an NVIDIA GPU of the Ampere generation or newer, got the "
            f"device {str(device)!r}; leave precision at 'exact'"
        )


@contextmanager
def undisturbed() -> Generator[None]:
    """Nothing within of what the caller has switched on around: autocast, which would round the
    walk's own algebra too, `no_grad` and inference mode, in which nothing is differentiated."""
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    if not kinds and torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        yield
        return
    with ExitStack() as settings:
        settings.enter_context(torch.inference_mode(False))
        settings.enter_context(torch.enable_grad())
        for kind in kinds:
            settings.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def reproducible(device: torch.device, precision: str = "exact") -> Generator[None]:
    """Kernels that give the same bits each time; on CUDA, cuDNN else picks convolutions by timing
    them, and rounds their inputs to TF32 unasked, too coarse to hold a level."""
    with ExitStack() as settings:
        if precision == "bf16":
            settings.enter_context(torch.autocast(device.type, torch.bfloat16))
        if device.type == "cuda":
            rounded = precision != "exact"
            settings.enter_context(
                torch.backends.cudnn.flags(
                    enabled=True, benchmark=False, deterministic=True, allow_tf32=rounded
                )
            )
            settings.enter_context(_products(rounded))
        yield


@contextmanager
def _products(rounded: bool) -> Generator[None]:
    """Whether CUDA's matrix products may round float32 inputs to TF32."""
    products = torch.backends.cuda.matmul
    name, value = "allow_tf32", rounded
    try:
        before = products.allow_tf32
    except RuntimeError:  # the user has set it by torch's newer name, and torch bars both together
        name, value = "fp32_precision", "tf32" if rounded else "ieee"
        before = getattr(products, name)
    setattr(products, name, value)
    try:
        yield
    finally:
        setattr(products, name, before)


@contextmanager
def twice_differentiable(device: torch.device) -> Generator[None]:
    """Kernels that can be differentiated twice: plain attention, weights normalized in plain
    operations, on CUDA plain recurrent layers."""
    cuda = device.type == "cuda"
    recurrent = torch.backends.cudnn.flags(enabled=False) if cuda else nullcontext()
    with sdpa_kernel(SDPBackend.MATH), Rewritten(WRONG_TWICE), recurrent:
        yield


@contextmanager
def one_thread() -> Generator[None]:
    """No threads of torch's own inside: they wait for one another on a busy machine."""
    before = torch.get_num_threads()
    if before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before > 1:
            torch.set_num_threads(before)


def channels_last_is_safe(model: object) -> bool:
    """Whether images may be laid out with their channels last, as far as is known of the model."""
    return not isinstance(model, nn.Module) or not any(
        isinstance(module, nn.Conv2d) and overruns(module) for module in model.modules()
    )


def pays_channels_last(device: torch.device, precision: str) -> bool:
    """Whether images are convolved faster so: on CPUs, and on GPUs by products of rounded inputs
    (of an H200's full ones by 0 to 9 % slower)."""
    return device.type == "cpu" or precision != "exact"


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    over = None if dim == -1 else [k for k in range(v.ndim) if k != dim % v.ndim]
    return v * (g / torch.linalg.vector_norm(v, dim=over, keepdim=dim != -1))


def _layer_norm(
    input: Tensor,  # noqa: A002  (torch's name, by which it may be given)
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    del cudnn_enable
    normed = _normed(input, range(-len(normalized_shape), 0), eps)
    scaled = normed if weight is None else normed * weight
    return scaled if bias is None else scaled + bias


def _instance_norm(
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    del momentum
    beside = (1, -1, *[1] * (input.ndim - 2))
    if use_input_stats or running_mean is None or running_var is None:
        normed = _normed(input, range(2, input.ndim), eps)
    else:
        normed = (input - running_mean.view(beside)) / (running_var.view(beside) + eps).sqrt()
    scaled = normed if weight is None else normed * weight.view(beside)
    return scaled if bias is None else scaled + bias.view(beside)


def _normed(values: Tensor, over: range, eps: float) -> Tensor:
    away = values - values.mean(list(over), keepdim=True)
    return away / (away.square().mean(list(over), keepdim=True) + eps).sqrt()


class Rewritten(TorchFunctionMode):
    """Some of torch's operations are computed as written here."""

    def __init__(self, operations: Mapping[Callable[..., Any], Callable[..., Tensor]]) -> None:
        super().__init__()
        self._operations = operations

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self._operations.get(func, func)(*args, **(kwargs or {}))


WRONG_TWICE: dict[Callable[..., Any], Callable[..., Tensor]] = {
    torch._weight_norm: _weight_norm  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
}
"""Operations whose second derivatives are wrong without a word (seen in 2.13;
tests/test_own_models.py)."""
WRONG_THRICE: dict[Callable[..., Any], Callable[..., Tensor]] = {
    functional.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    functional.instance_norm: _instance_norm,
}
"""Those whose third ones are (tests/regularizers/test_derivatives.py)."""
