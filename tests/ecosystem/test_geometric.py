"""PyG: a graph is passed to the model as it is; one loss for each node, or for each graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.ecosystem.walks import trained, walked
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, dropout

pyg = pytest.importorskip("torch_geometric")
from torch_geometric.data import Batch, Data  # noqa: E402
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv, global_mean_pool  # noqa: E402


class Nodes(nn.Module):
    """A class for each node."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.first, self.second = layer(5, 12), layer(12, 3)

    def forward(self, graph: Any) -> Tensor:
        hidden = dropout(self.first(graph.x, graph.edge_index).relu(), 0.5, self.training)
        return self.second(hidden, graph.edge_index)


class Graphs(nn.Module):
    """A class for each graph, with batch norm over the nodes."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 12))
        self.message, self.head = GINConv(layers), nn.Linear(12, 2)

    def forward(self, graph: Any) -> Tensor:
        return self.head(global_mean_pool(self.message(graph.x, graph.edge_index), graph.batch))


def graph(nodes: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(nodes, (2, 3 * nodes), generator=generator)
    x = torch.randn(nodes, 5, generator=generator)
    return Data(x=x, edge_index=torch.cat([edges, edges.flip(0)], 1))


def classify(model: nn.Module, data: Any) -> Tensor:
    return torch.cat([cross_entropy(model(g), t, reduction="none") for g, t in data]).mean()


@pytest.mark.parametrize("layer", [GCNConv, GATConv], ids=lambda layer: layer.__name__)
def test_classes_of_the_nodes_of_one_graph(layer: Any) -> None:
    whole = graph(40, seed=0)
    data = [(whole, (whole.x.sum(1) > 0).long() + (whole.x[:, 0] > 1).long())]
    walked(trained(Nodes(layer), classify, data), "cross_entropy", data, classify)


def test_classes_of_graphs_in_batches() -> None:
    graphs = [graph(5 + k % 4, seed=k) for k in range(24)]
    labels = torch.tensor([int(g.x.mean() > 0) for g in graphs])
    data = [(Batch.from_data_list(graphs[k : k + 8]), labels[k : k + 8]) for k in (0, 8, 16)]
    walked(trained(Graphs(), classify, data), "cross_entropy", data, classify)


def test_links_of_a_graph_by_one_number() -> None:
    """Inner products of nodes' states, for edges that are there and for as many that are not."""

    class Links(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = SAGEConv(5, 12)

        def forward(self, graph: Any) -> Tensor:
            state = self.layer(graph.x, graph.edge_index)
            return (state[graph.pairs[0]] * state[graph.pairs[1]]).sum(1)

    def own_loss(model: nn.Module, graph: Any) -> Tensor:
        return binary_cross_entropy_with_logits(model(graph), graph.there)

    def plain(model: nn.Module, data: Any) -> Tensor:
        return own_loss(model, data[0])

    whole = graph(20, seed=0)
    others = torch.randint(20, whole.edge_index.shape)
    whole.pairs = torch.cat([whole.edge_index, others], 1)
    whole.there = torch.cat([torch.ones(others.shape[1]), torch.zeros(others.shape[1])])
    walked(trained(Links(), plain, [whole]), own_loss, [whole], plain)
