"""What a recorded function gives when it is replayed: what it gives when it is called."""

import pytest
import torch
from tests.graphs import CpuGraph
from torch import nn

from isoloss._kernels.capture import Captured, CudaGraph, UncapturableError, graph_for

GRAPHS = [
    pytest.param((CpuGraph, "cpu"), id="cpu"),
    pytest.param(
        (CudaGraph, "cuda"),
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
        id="cuda",
    ),
]


@pytest.fixture(params=GRAPHS)
def made(request):
    kind, device = request.param
    return kind(torch.device(device)), torch.device(device)


def test_a_replay_is_a_call_with_the_inputs_of_now(made):
    graph, device = made
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).to(device)
    parameters = list(model.parameters())

    def function(x, y):
        return torch.autograd.grad((model(x) - y).square().mean(), parameters)

    batches = [(torch.randn(7, 3).to(device), torch.randn(7, 1).to(device)) for _ in range(3)]
    captured = Captured(function, batches[0], graph)
    for batch in batches[::-1]:
        for ours, plain in zip(captured(*batch), function(*batch), strict=True):
            assert torch.equal(ours, plain)
        with torch.no_grad():
            parameters[0].mul_(2)  # in place: the graph sees it


def test_what_a_function_changes_is_changed_by_calls_alone(made):
    graph, device = made
    total = torch.zeros(2, device=device)
    one = torch.ones(2, device=device)
    captured = Captured(total.add_, [one], graph, changes=[total])
    assert total.tolist() == [0, 0]
    captured(one)
    captured(one * 3)
    assert total.tolist() == [4, 4]


def test_a_function_that_waits_is_not_recorded_and_changes_nothing(made):
    graph, device = made
    total = torch.zeros(2, device=device)

    def function(x):
        total.add_(x)
        return total * x.sum().item()

    with pytest.raises(UncapturableError):
        Captured(function, [torch.ones(2, device=device)], graph, changes=[total])
    assert total.tolist() == [0, 0]
    torch.rand(2, device=device)  # random numbers are drawn as before
    again = Captured(lambda x: x + 1, [total], type(graph)(device))
    assert again(total).tolist() == [1, 1]


def test_errors_of_the_function_itself_are_its_own(made):
    graph, device = made
    with pytest.raises(ZeroDivisionError):
        Captured(lambda x: x / (1 // 0), [torch.ones(2, device=device)], graph)


def test_a_cpu_has_no_graphs():
    assert graph_for(torch.device("cpu")) is None
