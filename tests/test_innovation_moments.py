from typing import Any

import pytest
import torch
from torch import Tensor

from mg2l.ops import innovation_moments, reference

# B, T, A, D, F, O: around vectors of 2 to 8, and blocks of 6 and 12 rows.
SIZES = [
    (1, 1, 1, 1, 1, 1),
    (3, 7, 2, 9, 15, 4),
    (2, 64, 3, 5, 9, 4),
    (5, 13, 1, 16, 6, 3),
    (1, 30, 2, 17, 4, 1),
    (2, 9, 1, 33, 3, 1),
    (2, 0, 2, 3, 5, 2),
    (0, 4, 2, 3, 5, 2),
]
DTYPES = [torch.float32, torch.float64]


def inputs(
    sizes: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    repeats: bool = False,
) -> tuple[list[Any], dict[str, Any]]:
    """Series, transitions most of which follow others, coefficients, observation; and places."""
    contexts, steps, agents, width, features, observation = sizes
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    transitions = draw(contexts, steps, agents, features)
    behind = transitions.view(contexts * steps, agents, features)
    behind[1:, :, :observation] = behind[:-1, :, features - observation :].clone()
    behind[4::5, -1, observation - 1] += 1
    series, places = draw(contexts, steps, agents, width), None
    if repeats:
        kept = -(-steps // 3)  # rows of each context
        places = torch.randint(max(kept, 1), (contexts, steps), generator=generator)
        places = (places.sort(1).values + kept * torch.arange(contexts).unsqueeze(1)).to(device)
        series, transitions = (x[:, :kept].flatten(0, 1) for x in (series, transitions))
        transitions[..., :observation] = transitions[..., features - observation :]
    coefficients = torch.tensor([0.6, 1.1, -0.3], dtype=dtype, device=device)
    return [series, transitions, coefficients, observation], {"places": places}


def results(function: Any, given: Any, options: dict[str, Any]) -> list[Tensor]:
    """The value and both gradients."""
    series, transitions, coefficients, observation = given
    leaves = [x.detach().requires_grad_() for x in (series, coefficients)]
    moments = function(leaves[0], transitions, leaves[1], observation, **options)
    cotangent = torch.randn(moments.shape, generator=torch.Generator().manual_seed(1))
    return [
        moments.detach(),
        *torch.autograd.grad((moments * cotangent.to(moments)).sum(), leaves),
    ]


@pytest.mark.parametrize("repeats", [False, True], ids=["in order", "repeats"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(dtype, sizes, repeats, device):
    given, options = inputs(sizes, dtype, device, repeats)
    ours = results(innovation_moments, given, options)
    wanted = results(reference.innovation_moments, given, options)
    assert ours[0].dtype == torch.float64
    for one, other in zip(ours, wanted, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other)


def test_by_hand(device):
    series = torch.tensor([[1.0, 2.0], [3.0, 5.0], [7.0, 11.0], [8.0, 2.0]], device=device)
    transitions = torch.tensor([[0.0, 4.0], [4.0, 6.0], [6.0, 5.0], [1.0, 1.0]], device=device)
    coefficients = torch.tensor([0.5, 2.0, -1.0], device=device)
    moments = innovation_moments(
        series.view(1, 4, 1, 2), transitions.view(1, 4, 1, 2), coefficients, 1
    )
    none = torch.tensor([[1.0, 2.0], [8.0, 2.0]])
    one, two = torch.tensor([[2.5, 4.0]]), torch.tensor([[2.0, 3.0]])
    wanted = torch.stack([x.mT @ x for x in (none, one, two)]).unsqueeze(1).unsqueeze(0) / 4
    torch.testing.assert_close(moments.cpu(), wanted.double())


def test_the_last_numbers_are_where_a_transition_ended(device):
    """Observations may overlap, and may be all of a transition."""
    given, options = inputs((2, 6, 1, 3, 4, 4), device=device)
    given[1][:, 1:] = given[1][:, :1]
    ours = innovation_moments(*given, **options)
    torch.testing.assert_close(ours, reference.innovation_moments(*given, **options))
    assert bool(ours[:, 1:].flatten(2).any(-1).all())


def test_moments_are_symmetric(device):
    given, options = inputs((3, 40, 2, 9, 15, 4), torch.float32, device)
    moments = innovation_moments(*given, **options)
    assert torch.equal(moments, moments.mT)


def test_rows_may_be_strided(device):
    given, options = inputs((3, 7, 2, 9, 15, 4), device=device)
    strided = [torch.stack([x, x + 1], -1)[..., 0] for x in given[:2]]
    assert not strided[0].is_contiguous()
    ours = results(innovation_moments, [*strided, *given[2:]], options)
    for one, other in zip(ours, results(innovation_moments, given, options), strict=True):
        assert torch.equal(one, other)


def test_rows_that_no_context_holds_have_no_gradient(device):
    given, options = inputs((2, 9, 2, 3, 5, 2), device=device, repeats=True)
    more = torch.ones(1, 2, 3, device=device, dtype=torch.float64)
    rows = torch.ones(1, 2, 5, device=device, dtype=torch.float64)
    longer = [torch.cat([given[0], more]), torch.cat([given[1], rows]), *given[2:]]
    short, long = (results(innovation_moments, x, options) for x in (given, longer))
    assert torch.equal(short[0], long[0])
    assert torch.equal(long[1][:-1], short[1])
    assert not long[1][-1].any()


def test_only_wanted_gradients(device):
    given, options = inputs((2, 9, 2, 3, 5, 2), torch.float32, device)
    wanted = results(innovation_moments, given, options)
    for which, at in ((0, 1), (2, 2)):
        leaves: list[Any] = [*given]
        leaves[which] = given[which].clone()
        leaves[which].requires_grad_()
        moments = innovation_moments(*leaves, **options)
        cotangent = torch.randn(moments.shape, generator=torch.Generator().manual_seed(1))
        (grad,) = torch.autograd.grad((moments * cotangent.to(moments)).sum(), leaves[which])
        assert torch.equal(grad, wanted[at])


@pytest.mark.parametrize("place", ["series", "coefficients", "transitions"])
def test_what_is_not_finite_is_not_hidden(place, device):
    given, options = inputs((2, 9, 2, 3, 5, 2), torch.float32, device)
    value = float("nan")
    if place == "coefficients":
        given[2].fill_(value)
    else:
        given[place == "transitions"][1, 3, 0, 1] = value
    ours, wanted = (
        f(*given, **options) for f in (innovation_moments, reference.innovation_moments)
    )
    torch.testing.assert_close(ours, wanted, equal_nan=True)
    assert bool(ours.isnan().any()) == (place != "transitions")  # it follows none


@pytest.mark.parametrize("steps", [1, 2])
def test_coefficients_of_what_is_not_known_are_not_looked_at(steps, device):
    given, options = inputs((2, steps, 2, 3, 5, 2), torch.float32, device)
    given[2][steps - 1 :] = float("nan")
    assert bool(innovation_moments(*given, **options).isfinite().all())


@pytest.mark.parametrize("repeats", [False, True], ids=["in order", "repeats"])
def test_gradcheck(repeats, device):
    given, options = inputs((2, 6, 2, 3, 5, 2), device=device, repeats=repeats)
    leaves = [given[0].requires_grad_(), given[2].requires_grad_()]

    def function(series: Tensor, coefficients: Tensor) -> Tensor:
        return innovation_moments(series, given[1], coefficients, given[3], **options)

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("repeats", [False, True], ids=["in order", "repeats"])
def test_opcheck(repeats, device):
    (series, transitions, coefficients, observation), options = inputs(
        (2, 6, 2, 3, 5, 2), torch.float32, device, repeats
    )
    arguments = series.requires_grad_(), transitions, coefficients.requires_grad_(), observation
    torch.library.opcheck(
        torch.ops.mg2l.innovation_moments.default, (*arguments, options["places"])
    )


def test_results_do_not_depend_on_the_number_of_threads(threads):
    given, options = inputs((40, 30, 2, 9, 15, 4), torch.float32, repeats=True)
    torch.set_num_threads(1)
    alone = results(innovation_moments, given, options)
    torch.set_num_threads(3)
    for one, other in zip(results(innovation_moments, given, options), alone, strict=True):
        assert torch.equal(one, other)


ROWS = {"series": torch.zeros(6, 2, 4), "transitions": torch.zeros(6, 2, 5)}
REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "axes": ({"series": torch.zeros(3, 4)}, r"series must have shape \[B, T, A, D\], got \[3, 4\]"),
    "rows": (
        {"places": torch.zeros(2, 3).long()},
        r"series must have shape \[U, A, D\], got \[2, 3, 2, 4\]",
    ),
    "integers": ({"series": torch.zeros(2, 3, 2, 4).long()}, "series must be float32 or float64"),
    "no numbers": ({"series": torch.zeros(2, 3, 2, 0)}, "with D >= 1"),
    "transitions": (
        {"transitions": torch.zeros(2, 3, 1, 5)},
        r"transitions must have shape \[B, T, A, F\] = \[2, 3, 2, 5\], got \[2, 3, 1, 5\]",
    ),
    "transition axes": ({"transitions": torch.zeros(2, 3, 5)}, "transitions must have shape"),
    "dtype": ({"transitions": torch.zeros(2, 3, 2, 5).double()}, "transitions must be float32"),
    "coefficients": (
        {"coefficients": torch.zeros(2)},
        r"coefficients must have shape \[3\] = \[3\], got \[2\]",
    ),
    "observation": ({"observation": 6}, r"observation must be in \[1, F\] with F = 5, got 6"),
    "no observation": ({"observation": 0}, r"observation must be in \[1, F\] with F = 5, got 0"),
    "places axes": ({**ROWS, "places": torch.zeros(3).long()}, r"places must have shape \[B, T\]"),
    "places dtype": ({**ROWS, "places": torch.zeros(2, 3)}, "places must be int64, got float32"),
    "places too large": (
        {**ROWS, "places": torch.full((2, 3), 6)},
        r"places must lie in \[0, U\) with U = 6, got 6",
    ),
    "places negative": (
        {**ROWS, "places": torch.full((2, 3), -1)},
        r"places must lie in \[0, U\) with U = 6, got -1",
    ),
    "places shared": (
        {**ROWS, "places": torch.full((2, 3), 4)},
        "contexts must have rows of their own, got row 4 in 0 and 1",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case):
    change, message = REFUSALS[case]
    arguments: dict[str, Any] = {
        "series": torch.zeros(2, 3, 2, 4),
        "transitions": torch.zeros(2, 3, 2, 5),
        "coefficients": torch.zeros(3),
        "observation": 2,
        **change,
    }
    with pytest.raises(RuntimeError, match=f"innovation_moments: .*{message}"):
        innovation_moments(**arguments)
