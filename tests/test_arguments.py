"""What is given to public functions: the right kinds pass, all others are one sentence each."""

from __future__ import annotations

import fractions
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path as FilePath

import numpy as np
import pytest
import torch
from tests.problems import regressor
from torch import Tensor, nn

import isoloss
from isoloss import InputError
from isoloss.arguments import checked, real, whole
from isoloss.errors import one_line, printable, shown


@checked
def takes(
    number: float = 1.0,
    count: int | None = None,
    name: str = "a",
    flag: bool = True,
    vector: Tensor | None = None,
    several: Sequence[float] = (),
    named: Mapping[str, Sequence[int]] | None = None,
    pair: tuple[float, float] = (0, 1),
    any_of: str | Callable[[int], int] | Iterable[int] = "a",
    *more: int,
) -> str:
    return "taken"


RIGHT = [
    {"number": 3}, {"number": np.float32(0.5)}, {"number": fractions.Fraction(1, 3)},
    {"count": np.int64(3)}, {"count": None}, {"flag": np.bool_(False)}, {"several": range(3)},
    {"vector": torch.zeros(2)}, {"vector": nn.Parameter(torch.zeros(2))}, {"several": [1, 2.5]},
    {"named": {}}, {"named": {"a": [1], "b": ()}}, {"pair": (1, 2.0)}, {"any_of": len},
    {"any_of": iter(())}, {"any_of": [1]},
]  # fmt: skip
WRONG = [
    ({"number": "3"}, "number must be a number, got a str, '3'"),
    ({"number": True}, "number must be a number, got a bool, True"),
    ({"number": 1j}, "number must be a number, got a complex"),
    ({"count": 2.5}, "count must be a whole number or None, got a float, 2.5"),
    ({"name": 3}, "name must be a string, got an int, 3"),
    ({"flag": 1}, "flag must be True or False, got an int, 1"),
    ({"vector": [1.0]}, "vector must be a dense tensor of real numbers or None, got a list"),
    ({"vector": torch.zeros(2, dtype=torch.complex64)}, "got a tensor of torch.complex64 on cpu"),
    ({"vector": torch.zeros(2).to_sparse()}, "torch.float32 on cpu that is torch.sparse_coo"),
    ({"vector": torch.zeros(2, device="meta")}, "got a tensor of torch.float32 on meta"),
    ({"several": "12"}, "several must be a list of a number each, got a str, '12'"),
    ({"several": [1, "2"]}, "several[1] must be a number, got a str, '2'"),
    ({"named": [1]}, "named must be a dict of a list of a whole number each by a string or None"),
    ({"named": {"a": [1, None]}}, "named['a'][1] must be a whole number, got None"),
    ({"named": {3: [1]}}, "a key of named must be a string, got an int, 3"),
    ({"pair": (1, 2, 3)}, "pair must be a tuple of a number each, got a tuple"),
    ({"any_of": 3}, "any_of must be a string or a function or a list of a whole number each"),
]


@pytest.mark.parametrize("given", RIGHT)
def test_what_fits_its_annotation_is_taken(given):
    assert takes(**given) == "taken"


@pytest.mark.parametrize(("given", "sentence"), WRONG)
def test_what_does_not_is_named_with_what_was_given(given, sentence, refuses):
    with refuses(sentence):
        takes(**given)


def test_every_one_of_several_is_looked_at_and_the_call_is_as_python_has_it():
    rest = (1.0, None, "a", True, None, (), None, (0, 1), "a")
    assert takes(*rest, 1, 2) == "taken"
    with pytest.raises(InputError, match="more must be a whole number, got a str, 'x'"):
        takes(*rest, 1, "x")
    assert takes.__name__ == "takes"


def test_a_call_that_does_not_fit_is_told_by_the_functions_name(refuses):
    with refuses("unknown argument of takes 'numbers'; did you mean number or name or named?"):
        takes(numbers=3)
    with refuses(
        "unknown argument of Problem 'metrics'; did you mean metric or parameters? There is: chunk_"
    ):
        isoloss.Problem(nn.Linear(2, 1), "mse", torch.ones(1, 2), metrics="mae")  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match=r"traverse\(\) missing 1 required .* 'problem'"):
        isoloss.traverse()  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3.0), (torch.tensor([0.5], requires_grad=True), 0.5), (10**400, float("inf")),
     (-(10**400), float("-inf")), (np.float16(2), 2.0)],
)  # fmt: skip
def test_numbers_of_any_kind_become_pythons(value, expected):
    assert real("x", value) == expected


@pytest.mark.parametrize("value", [torch.zeros(2), torch.tensor(1j), "1", None, True, np.zeros(1)])
def test_what_is_no_number_is_none(value, refuses):
    with refuses("x must be a number, got"):
        real("x", value)


def test_whole_numbers_have_bounds(refuses):
    assert whole("n", np.int64(3)) == 3
    for value, words in (
        (-1, "n must be a whole number of at least 0, got -1"),
        (2**63, "n must be a whole number from 0 to 2^63 - 1, got 9223"),
        (10**5000, "n must be a whole number from 0 to 2^63 - 1, got an int"),
        (2.0, "got 2.0"),
    ):
        with refuses(words):
            whole("n", value)
    with refuses("n must be a whole number from 1 to 5, got 6"):
        whole("n", 6, 1, 5)


def test_values_are_shown_in_one_line_whatever_they_are():
    circle = []
    circle.append(circle)
    deep = []
    for _ in range(10_000):
        deep = [deep]
    assert shown("a\nb") == r"'a\nb'"
    assert shown(circle) == "[[...]]"
    assert shown(deep) == "a list"
    assert shown(10**5000) == "an int"
    assert len(shown("x" * 1000)) == 80
    assert "\n" not in shown(torch.zeros(40, 40))


def test_another_librarys_error_is_cut_to_a_sentence():
    assert one_line(ValueError("Loading failed. Since 2.6, " + "x" * 200)) == "Loading failed"
    assert one_line(ValueError("x" * 200)) == "x" * 160
    assert one_line(ValueError("Not there.\nMore")) == "Not there"
    with pytest.raises(RuntimeError) as caught:
        torch.nn.Linear(1, 1).load_state_dict({})
    missing = 'Linear: Missing key(s) in state_dict: "weight", "bias"'
    assert one_line(caught.value) == f"Error(s) in loading state_dict for {missing}"


def test_what_is_printed_moves_no_cursor():
    assert printable("a [red]b[/] é\n") == "a [red]b[/] é\n"
    assert printable("\x1b[2J\r\ud800\u202e") == r"\x1b[2J\r\ud800\u202e"


NET = regressor()
PROBLEM = NET.problem()
OUTSIZE = [
    (lambda: isoloss.Checkpoint(None), "folder must be a path"),
    (lambda: isoloss.open_results(3), "folder must be a path"),
    (lambda: isoloss.open_results("a\0b"), "characters that cannot be printed"),
    (lambda: isoloss.open_results("x" * 5000), "File name too long"),
    (lambda: isoloss.open_results("~nobody-is-called-so/x"), "give another path"),
    (lambda: isoloss.Checkpoint("c", every="1"), "every must be a number of seconds"),
    (lambda: isoloss.traverse(PROBLEM, level=10**400), "level must be a"),
    (lambda: isoloss.traverse(PROBLEM, level=1j), "level must be a number"),
    (lambda: isoloss.traverse(PROBLEM, start=PROBLEM.current().to(torch.complex64)), "start"),
    (lambda: isoloss.traverse(PROBLEM, start=PROBLEM.current().tolist()), "start must be a"),
    (lambda: isoloss.traverse(PROBLEM, callback=lambda: True), "callback"),
    (lambda: isoloss.traverse(PROBLEM, stop=isoloss.Stop(when=lambda: True)), "Stop(when=...)"),
    (lambda: isoloss.losses.get_loss([]), "loss must be a name"),
    (lambda: isoloss.Stop(500), "Stop takes its settings by name, as in Stop(kkt_residual=...)"),
    (lambda: isoloss.Stop(steps=10**20), "steps of Stop must be less than or equal to 9223"),
    (lambda: isoloss.Stop(steps=10**5000), "steps of Stop"),
    (lambda: isoloss.SQP(memory=10**12), "memory of SQP must be less than or equal to 10000"),
    (lambda: isoloss.HessianTrace(probes=10**12), "probes of HessianTrace must be less than"),
    (lambda: isoloss.HessianTrace(seed=10**30), "seed of HessianTrace must be less than"),
    (lambda: isoloss.Outcome("stale"), "did you mean stalled or slowed?"),
    (lambda: isoloss.Outcome(3), "unknown outcome 3"),
    (lambda: isoloss.check(PROBLEM, seed=10**20), "seed must be a whole number from 0 to"),
    (lambda: PROBLEM.with_chunk_size(10**20), "size must be a whole number from 1 to"),
    (lambda: PROBLEM.loss([0.0]), "theta must be a tensor"),
    (lambda: isoloss.maximize(nn.ReLU()).bind(PROBLEM), "the regularizer 'ReLU' failed"),
    (lambda: isoloss.experiments.get(None), "name must be a string"),
    (lambda: isoloss.experiments.get("IRIS_FF").data(0.5), "seed must be a whole number"),
]


@pytest.mark.parametrize("call", range(len(OUTSIZE)))
def test_public_functions_answer_in_a_sentence(call, refuses):
    function, words = OUTSIZE[call]
    with refuses(words):
        function()


def test_a_point_is_loaded_by_a_number(tmp_path: FilePath, refuses):
    path = isoloss.traverse(PROBLEM, stop=isoloss.Stop(steps=1), progress=False)
    for k in ("a", None, 0.5, torch.zeros(())):
        with refuses("k must be a whole number"):
            path.load_into(NET.model, k=k)
    with refuses("k must be the number of one of the", "got an int"):
        path.state_dict(10**5000)


def test_memory_that_there_is_not_is_a_sentence(monkeypatch, refuses):
    theta = PROBLEM.current()

    def none_left(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Tensor, "new_zeros", none_left)
    with refuses("memory=5000 of SQP asks for", "lower it"):
        isoloss.methods.sqp.basis.Basis.empty(5000, theta)
