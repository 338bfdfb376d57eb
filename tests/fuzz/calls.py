"""Every public function and method with arguments that are right, to be made wrong one by one."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from tests.report.made import made_path, made_results, write_decay, write_run
from torch import Tensor, nn

import isoloss
from isoloss import experiments, losses, reference, regularizers, report, training

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A public function and its arguments, each made anew by a function."""

    name: str
    function: Callable[..., Any]
    arguments: Arguments  # by name; those of which the name begins with * are positional only


class World:
    """What calls are made on: a tiny problem, walks, results, figures."""

    def __init__(self, scratch: FilePath) -> None:
        self.scratch = scratch
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(6, 2, generator=generator, dtype=torch.float64)
        self.targets = torch.tensor([0, 1, 0, 1, 1, 0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        self.problem = self.problem_of()
        self.theta = self.problem.current()
        self.path = isoloss.traverse(self.problem, stop=isoloss.Stop(steps=2), progress=False)
        self.path.save(scratch / "walk")
        made_results(scratch / "results")
        self.results = isoloss.open_results(scratch / "results")
        stop = isoloss.Stop(steps=1)
        self.extents = isoloss.extent(self.problem, ["l1"], stop=stop, progress=False)
        self.walks = {"sqp": [made_path(8, k) for k in range(2)]}
        self.points = [path.points for path in self.walks["sqp"]]
        self.pca = report.pca(self.points)
        self.table = report.walk_table(self.walks)
        self.decay = self.results.decay("IRIS_FF")
        self.epochs = self.results.decay_epochs("IRIS_FF")
        small = scratch / "small"
        write_run(small, made_path(5), 0)
        write_decay(small, 0)
        self.small = isoloss.open_results(small)
        (scratch / "logs").mkdir()
        self.iris = experiments.get("IRIS_FF")

    def problem_of(self, **changes: Any) -> isoloss.Problem:
        given = {"model": self.model, "loss": "cross_entropy", "data": (self.inputs, self.targets)}
        return isoloss.Problem(**{**given, **changes})

    def trained(self) -> tuple[training.Training, training.TrainingState]:
        made = training.Training(self.model, "cross_entropy", self.inputs, self.targets)
        return made, made.init(self.theta[None])


def function_of(parameters: Any, inputs: Tensor) -> Tensor:
    return inputs @ parameters["w"]


def calls(world: World) -> list[Call]:
    """All of them."""
    w = world
    model, problem, theta, path = w.model, w.problem, w.theta, w.path
    walk = {
        "problem": problem, "start": theta, "level": None, "regularizer": "l1", "method": "sqp",
        "hold": {"x": isoloss.at_most("l1", 90.0)}, "rtol": 1e-3, "stop": isoloss.Stop(steps=1),
        "record": isoloss.Record(),
        "probes": {"test": problem}, "checkpoint": None, "check": True,
    }  # fmt: skip
    searched = {name: walk[name] for name in ("problem", "start", "level", "method", "rtol")}
    searched |= {"atol": None, "gain": 1e-3, "progress": False}
    made = [
        Call("traverse", isoloss.traverse, {**walk, "callback": None, "progress": False}),
        Call("walk", lambda **k: list(isoloss.walk(**k)), walk),
        Call("extent", isoloss.extent, {
            **searched, "quantity": {"a": "l1"}, "stop": isoloss.Stop(steps=1), "workers": 1,
        }),
        Call("different", isoloss.different, {
            **searched, "pool": w.inputs, "count": 1, "kind": "classes",
            "stop": isoloss.Stop(steps=1),
        }),
        Call("walk.interrupt", isoloss.walk(problem).interrupt, {"detail": "why"}),
        Call("check", isoloss.check, {"problem": problem, "regularizer": "l1", "seed": 0}),
        Call("Problem", _evaluated, {
            "model": model, "loss": "cross_entropy", "data": (w.inputs, w.targets),
            "weights": None, "metric": "accuracy", "parameters": None, "dtype": None,
            "device": None, "chunk_size": None,
        }),
        Call("Problem of a function", _evaluated, {
            "model": function_of, "loss": "mse", "data": (w.inputs, w.inputs[:, :1]),
            "parameters": {"w": torch.ones(2, 1, dtype=torch.float64)},
        }),
        *(Call(f"Problem.{name}", getattr(problem, name), {"theta": theta}) for name in (
            "loss", "loss_and_grad", "evaluate", "example_losses")),
        Call("Problem.hvp", problem.hvp, {"theta": theta, "vector": theta}),
        Call("Problem.with_dtype", problem.with_dtype, {"dtype": torch.float32}),
        Call("Problem.with_chunk_size", problem.with_chunk_size, {"size": 3}),
        Call("Path.load_into", path.load_into, {"model": w.problem_of()._model, "k": -1}),
        Call("Path.save", path.save, {"folder": "saved"}),
        Call("Path.load", isoloss.Path.load, {"folder": w.scratch / "walk"}),
        Call("Path.state_dict", path.state_dict, {"k": 0}),
        Call("Path", lambda **k: repr(isoloss.Path(**k)), {
            "steps": path.steps, "points": path.points, "point_steps": path.point_steps,
            "level": 0.5, "outcome": path.outcome, "message": "m", "method": "sqp",
            "regularizer": "l1", "shapes": path.shapes, "buffers": {}, "frozen": {},
            "state_keys": path.state_keys, "constraints": {}, "metadata": {},
        }),
        *(Call(name, lambda _made=made, **k: isoloss.traverse(
            problem, hold={"x": _made(**k)}, stop=isoloss.Stop(steps=1), progress=False,
        ), {"quantity": "l1", what: 3.0, "rtol": 1e-3, "atol": 1e-2}) for name, made, what in (
            ("at_most", isoloss.at_most, "bound"), ("equal", isoloss.equal, "value"))),
        Call("Checkpoint", isoloss.Checkpoint, {"folder": "kept", "every": 30.0}),
        Call("Outcome", _outcome, {"value": "stalled"}),
        Call("open_results", isoloss.open_results, {"folder": w.scratch / "results"}),
        Call("Results", isoloss.Results, {"folder": w.scratch / "results"}),
        Call("Check", lambda **k: str(isoloss.Check(**k)),
        {"findings": isoloss.check(problem).findings}),
    ]  # fmt: skip
    of_one = ("walks", "decay", "decay_epochs", "decay_points", "decay_unfinished")
    both = ("paths", "unfinished", "equivalent", "after_decay")
    given = {"experiment": "IRIS_FF", "method": "sqp"}
    made += [
        *(Call(f"Results.{n}", getattr(w.small, n), {"experiment": "IRIS_FF"}) for n in of_one),
        *(Call(f"Results.{n}", getattr(w.small, n), given) for n in both),
        Call("Results.methods", w.small.methods, {"experiment": "IRIS_FF"}),
    ]
    return made + _settings() + _of_losses(w) + _of_regularizers(w) + _of_rooms(w) + _of_report(w)


def _settings() -> list[Call]:
    return [
        Call("Stop", isoloss.Stop, {
            "kkt_residual": 1e-3, "regularizer_below": None, "steps": 5, "evaluations": None,
            "seconds": None, "when": None,
        }),
        Call("Record", isoloss.Record, {
            "probes_every": 1, "points_every": 1, "points_at_most": 20
        }),
    ]  # fmt: skip


def _of_losses(w: World) -> list[Call]:
    outputs, targets = torch.zeros(6, 2), torch.zeros(6, 2)
    both = {"outputs": outputs, "targets": targets}
    return [
        Call("get_loss", losses.get_loss, {"loss": "mse"}),
        Call("get_metric", losses.get_metric, {"metric": "mae", "loss": "mse"}),
        Call("CrossEntropy", losses.CrossEntropy, {"label_smoothing": 0.1}),
        Call("Huber", losses.Huber, {"delta": 1.0}),
        Call("losses.mse", losses.mse, both),
        Call("losses.huber", losses.huber, both),
        Call("losses.bce_with_logits", losses.bce_with_logits, both),
        Call("losses.cross_entropy", losses.cross_entropy, {"logits": outputs,
        "targets": w.targets}),
        Call("losses.accuracy", losses.accuracy, {"logits": outputs, "targets": w.targets}),
        Call("losses.binary_accuracy", losses.binary_accuracy, {"logits": outputs,
        "targets": targets}),
        Call("losses.mae", losses.mae, both),
    ]  # fmt: skip


def _of_regularizers(w: World) -> list[Call]:
    """Each with its settings, bound and evaluated where it walks; sums; methods of walks."""

    def bound(kind: Callable[..., Any]) -> Callable[..., Any]:
        return lambda **settings: kind(**settings).bind(w.problem).value_and_grad(w.theta)

    def stepped(kind: Callable[..., Any]) -> Callable[..., Any]:
        def step(**settings: Any) -> Any:
            method, stop = kind(**settings), isoloss.Stop(steps=3, seconds=1.0)
            return isoloss.traverse(w.problem, method=method, stop=stop, progress=False)

        return step

    named = {"regularizer": "l1"}
    return [
        Call("SquaredNorm", bound(isoloss.SquaredNorm), {
            "without_biases": True, "weights": {"0.*": 2.0}, "center": w.theta,
        }),
        Call("L1", bound(isoloss.L1), {"smoothing": 1e-2}),
        Call("GroupLasso", bound(isoloss.GroupLasso), {"smoothing": 1e-2}),
        Call("NuclearNorm", bound(isoloss.NuclearNorm), {"smoothing": 1e-2}),
        Call("HessianTrace", bound(isoloss.HessianTrace), {"probes": 2, "seed": 0}),
        Call("Outputs", lambda **given: isoloss.Outputs(**given).bind(w.problem), {
            "inputs": torch.ones(2, 2), "function": torch.sum, "name": "total",
        }),
        Call("ParityGap", lambda **given: isoloss.ParityGap(**given).bind(w.problem), {
            "inputs": torch.ones(4, 2), "groups": torch.arange(4) % 2, "kind": "equal_opportunity",
            "targets": torch.ones(4).long(), "positive": 1, "probability": lambda o: o[:, 0],
        }),
        Call("AdaptiveSharpness", bound(isoloss.AdaptiveSharpness), {
            "kind": "average", "radius": 0.1, "probes": 2, "seed": 0,
        }),
        *(Call(f"{kind.__name__}.bind", kind().bind, {"problem": w.problem}) for kind in (
            isoloss.SquaredNorm, isoloss.L1, isoloss.GroupLasso, isoloss.NuclearNorm,
            isoloss.PathNorm, isoloss.HessianTrace, isoloss.GradientNorm, isoloss.InputGradient)),
        Call("a regularizer times", lambda weight: isoloss.L1() * weight, {"weight": 2.0}),
        Call("maximize", lambda r: isoloss.maximize(r).bind(w.problem), {"r": "l1"}),
        Call("weighted_sum", lambda part: isoloss.weighted_sum(part).bind(w.problem),
             {"part": (1.0, "l1")}),
        Call("weighted_sum of a pair", lambda weight, r: isoloss.weighted_sum((weight, r)).bind(
             w.problem), {"weight": 1.0, "r": "l1"}),
        Call("get_regularizer", regularizers.get_regularizer, {**named, "problem": w.problem}),
        Call("SQP", stepped(isoloss.SQP), {
            "memory": 16, "first_step": 0.05, "max_trials": 40, "max_approach": 5,
        }),
        Call("Paper", stepped(isoloss.Paper), {
            "smallest_step": 1e-5, "largest_step": 0.1, "corrector_step": 1e-6, "tolerance": 1e-5,
            "max_corrections": 5,
        }),
    ]  # fmt: skip


def _of_rooms(w: World) -> list[Call]:
    """Experiments, training, the reference's logs."""
    made, state = w.trained()
    network = w.iris.network(0)
    flat = torch.zeros(sum(p.numel() for p in network.parameters()))
    trained = {"model": w.model, "loss": "cross_entropy", "inputs": w.inputs, "targets": w.targets}
    return [
        Call("experiments.get", experiments.get, {"name": "IRIS_FF"}),
        Call("Experiment.data", w.iris.data, {"seed": 0}),
        Call("Experiment.network", w.iris.network, {"seed": 0}),
        Call("Experiment.start", w.iris.start, {
            "seed": 0, "device": "cpu", "dtype": torch.float32, "weights": flat, "training": None,
            "after_epoch": None, "chunk_size": 120,
        }),
        Call("Experiment.method", w.iris.method, {"name": "sqp"}),
        Call("Experiment.record", w.iris.record, {"method": isoloss.SQP()}),
        Call("train", _train, {
            **trained, "epochs": 1, "batch_size": 3, "state": None, "after_epoch": None,
        }),
        Call("Training", training.Training, {
            **trained, "penalties": (0.0, 0.1), "include_biases": False, "own_examples": False,
            "batch_size": 3,
        }),
        Call("Training.init", made.init, {"thetas": w.theta[None]}),
        Call("Training.epoch", w.trained()[0].epoch, {"state": state}),
        Call("Training.thetas", made.thetas, {"state": state}),
        Call("Training.norms", made.norms, {"state": state}),
        Call("Training.evaluate", made.evaluate, {
            "state": state, "inputs": w.inputs, "targets": w.targets, "metric": losses.accuracy,
        }),
        Call("import_reference", reference.import_reference, {
            "folder": w.scratch / "logs", "out": None
        }),
        Call("export_reference", reference.export_reference, {
            "results": w.small, "experiment": "IRIS_FF", "folder": "theirs", "method": "paper",
        }),
        Call("to_keras", reference.to_keras, {"points": flat, "network": network}),
        Call("from_keras", reference.from_keras, {"points": flat, "network": network}),
    ]  # fmt: skip


def _evaluated(**given: Any) -> None:
    """A problem, at the model's present weights."""
    problem = isoloss.Problem(**given)
    problem.loss_and_grad(problem.current())
    problem.evaluate(problem.current())


def _outcome(value: Any) -> None:
    """Of what can be looked up: an enum compares all else with its members itself."""
    if isinstance(value, Hashable):
        isoloss.Outcome(value)


def _train(**given: Any) -> None:
    """Two epochs of any number that is one."""
    epochs = given["epochs"]
    few = min(epochs, 2) if isinstance(epochs, int) and epochs < 2**63 else epochs
    training.train(**{**given, "epochs": few})


def _of_report(w: World) -> list[Call]:
    from matplotlib.figure import Figure

    titled = {"title": "t", "metric": "accuracy"}
    return [
        Call("plot", isoloss.plot, {"walks": w.path, "against": "step"}),
        Call("extent_intervals", report.extent_intervals, {
            "extents": w.extents, "title": "t", "label": "l"
        }),
        Call("report", report.report, {"results": w.small, "experiment": "IRIS"}),
        Call("save", report.save, {
            "figure": Figure(figsize=(1, 1)), "folder": FilePath("drawn"), "name": "figure"
        }),
        Call("walk_panels", report.walk_panels, {
            "methods": w.walks, "against": "step", "unit": "nats", **titled
        }),
        Call("close_up", report.close_up, {
            "methods": w.walks, "column": "loss", "interval": (0.0, 5.0), "against": "step",
            "title": "t", "label": "l",
        }),
        Call("walk_table", report.walk_table, {"methods": w.walks}),
        Call("readable", report.readable, {"table": w.table}),
        Call("outcome_table", report.outcome_table, {"methods": w.walks, "unfinished": None}),
        Call("comparison_table", report.comparison_table, {"methods": w.walks, "decay": w.decay}),
        Call("comparison_scatter", report.comparison_scatter, {
            "methods": w.walks, "decay": w.decay, **titled
        }),
        Call("decay_history", report.decay_history, {"epochs": w.epochs, **titled}),
        Call("pca", report.pca, {"points": w.points, "scaled": True, "components": 3}),
        Call("PCA.transform", w.pca.transform, {"points": w.points[0]}),
        Call("PCA.length_share", w.pca.length_share, {"first": 1, "last": 3}),
        Call("explained_variance", report.explained_variance, {"*pca": w.pca, "title": "t"}),
        Call("pca_views", report.pca_views, {"pca": w.pca, "ends": None, "title": "t"}),
    ]  # fmt: skip
