import math
import os
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mg2l.ops import GAE, gae, reference

# 1-D, few and many columns, longer and shorter than a tile, a vector and a group of steps, empty.
SHAPES = [(1,), (7,), (5, 3), (4, 2, 3), (33, 5000), (200, 513), (3, 0), (0, 4), (0,)]
FLAGS = {
    "none": (0.0, 0.0),
    "terminated": (0.2, 0.0),
    "truncated": (0.0, 0.2),
    "both": (0.3, 0.3),
    "every step": (1.0, 1.0),
}


def inputs(
    shape: tuple[int, ...],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
    flags: str = "both",
    final_values: bool = True,
    scaled: bool = True,
    seed: int = 0,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments and keyword arguments of gae. What must not be read is NaN."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=dtype).to(device)

    def bernoulli(probability: float) -> Tensor:
        return (torch.rand(shape, generator=generator) < probability).to(device)

    terminated, truncated = (bernoulli(probability) for probability in FLAGS[flags])
    options: dict[str, Any] = {}
    if final_values:
        read = truncated & ~terminated
        options["final_values"] = torch.where(read, normal(*shape), float("nan"))
    if scaled:
        options["value_mean"] = normal(*shape[-1:]) if len(shape) > 1 else normal()
        options["value_std"] = normal().abs() + 0.5
    values = normal(shape[0] + 1, *shape[1:])
    return (normal(*shape), values, terminated, truncated, 0.97, 0.9), options


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("final_values", [False, True])
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_matches_reference(dtype, shape, flags, final_values, scaled, device):
    args, options = inputs(shape, device, dtype, flags, final_values, scaled)
    result, expected = gae(*args, **options), reference.gae(*args, **options)
    assert isinstance(result, GAE)
    for name, ours, theirs in zip(GAE._fields, result, expected, strict=True):
        assert ours.is_contiguous(), name
        # float32 rounds an advantage of size 10 by 1e-6, and 200 squares add up in the moments.
        tolerance: dict[str, Any] = {}
        if dtype == torch.float32:
            tolerance = {"rtol": 1e-5, "atol": 2e-4 if name == "moments" else 2e-5}
        tolerance["msg"] = partial("{}: {}".format, name)
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize(
    ("gamma", "gae_lambda"), [(0.0, 0.0), (0.0, 1.0), (0.99, 0.0), (0.99, 1.0), (1.0, 1.0)]
)
def test_matches_reference_at_the_ends_of_gamma_and_lambda(gamma, gae_lambda, device):
    args, options = inputs((40, 9), device)
    args = (*args[:4], gamma, gae_lambda)
    for ours, theirs in zip(gae(*args, **options), reference.gae(*args, **options), strict=True):
        torch.testing.assert_close(ours, theirs)


def by_hand(terminated: list[int], truncated: list[int], final: float | None) -> list[float]:
    """Advantages of rewards 1, 2, 3 with values 10, 20, 30, 40, gamma 0.5, lambda 0.5."""
    result = gae(
        torch.tensor([1.0, 2.0, 3.0]),
        torch.tensor([10.0, 20.0, 30.0, 40.0]),
        torch.tensor(terminated, dtype=torch.bool),
        torch.tensor(truncated, dtype=torch.bool),
        0.5,
        0.5,
        final_values=None if final is None else torch.full((3,), final),
    )
    assert result.returns.tolist() == (result.advantages + torch.tensor([10, 20, 30])).tolist()
    advantages: list[float] = result.advantages.tolist()
    return advantages


def test_continues():
    # TD errors: 1 + 10 - 10 = 1, 2 + 15 - 20 = -3, 3 + 20 - 30 = -7; decay 0.25.
    assert by_hand([0, 0, 0], [0, 0, 0], None) == [1 - 0.75 - 7 / 16, -3 - 7 / 4, -7]


def test_termination_has_no_value_after_it():
    # Step 1: 2 + 0 - 20 = -18, and nothing of step 2 reaches it.
    assert by_hand([0, 1, 0], [0, 0, 0], None) == [1 - 18 / 4, -18, -7]
    assert by_hand([0, 1, 0], [0, 0, 0], 100.0) == [1 - 18 / 4, -18, -7]


def test_truncation_bootstraps_from_the_real_next_observation():
    # Step 1: 2 + 0.5 * 100 - 20 = 32, and nothing of step 2 reaches it.
    assert by_hand([0, 0, 0], [0, 1, 0], 100.0) == [1 + 32 / 4, 32, -7]


def test_truncation_without_final_values_bootstraps_from_the_next_value():
    # Step 1: 2 + 0.5 * 30 - 20 = -3, and nothing of step 2 reaches it.
    assert by_hand([0, 0, 0], [0, 1, 0], None) == [1 - 3 / 4, -3, -7]


def test_termination_wins_over_truncation():
    assert by_hand([0, 1, 0], [0, 1, 0], 100.0) == by_hand([0, 1, 0], [0, 0, 0], None)


def test_lambda_one_gives_discounted_returns(device):
    rewards = torch.rand(50, 4, dtype=torch.float64, device=device)
    values = torch.rand(51, 4, dtype=torch.float64, device=device)
    go_on = torch.zeros(50, 4, dtype=torch.bool, device=device)
    expected = values[-1]
    for reward in rewards.flip(0):
        expected = reward + 0.9 * expected
    torch.testing.assert_close(gae(rewards, values, go_on, go_on, 0.9, 1.0).returns[0], expected)


def test_denormalises_per_agent(device):
    (rewards, values, terminated, truncated, *rates), options = inputs((20, 6, 3), device)
    mean, std = torch.tensor([[1.0, -2.0, 3.0], [0.5, 2.0, 4.0]], dtype=torch.float64).to(device)
    final = options["final_values"]
    ours = gae(
        rewards, values, terminated, truncated, *rates,
        final_values=final, value_mean=mean, value_std=std,
    )  # fmt: skip
    plain = gae(
        rewards, values * std + mean, terminated, truncated, *rates,
        final_values=final * std + mean,
    )  # fmt: skip
    for left, right in zip(ours, plain, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_moments_give_mean_and_variance_of_any_group(dtype, device):
    args, options = inputs((100, 32, 3), device, dtype)
    advantages, _, moments = gae(*args, **options)
    assert moments.dtype == torch.float64
    assert moments.shape == (2, 32, 3)
    mean = moments[0].mean(0)  # of the 32 columns of each agent
    squares = moments[1].sum(0) + 100 * (moments[0] - mean).square().sum(0)
    wide = advantages.double()
    tolerance: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(mean, wide.mean((0, 1)), **tolerance)
    torch.testing.assert_close(squares / (100 * 32), wide.var((0, 1), unbiased=False), **tolerance)


def given_advantages(advantages: Tensor) -> GAE:
    """`gae` of steps that are episodes of their own: the rewards are the advantages."""
    ended = torch.ones_like(advantages, dtype=torch.bool)
    values = advantages.new_zeros(len(advantages) + 1, *advantages.shape[1:])
    return gae(advantages, values, ended, ended, 1.0, 1.0)


@pytest.mark.parametrize("steps", [1, 15, 16, 17, 200, 4001])
@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6, -1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_moments_do_not_cancel(dtype, mean, steps, device):
    """A mean of a million standard deviations, as far as the dtype can hold such numbers."""
    noise = torch.randn(steps, 37, generator=torch.Generator().manual_seed(steps))
    x = (mean + noise).to(device, dtype)
    x[steps // 2 :] *= 0.5  # a mean that moves
    moments = given_advantages(x).moments
    wide = x.double()
    torch.testing.assert_close(moments[0], wide.mean(0), rtol=1e-7, atol=1e-7)
    squares = (wide - wide.mean(0)).square().sum(0)
    torch.testing.assert_close(moments[1], squares, rtol=1e-5, atol=1e-9)


def test_moments_of_equal_advantages_have_no_spread(device):
    moments = given_advantages(torch.full((1 << 16, 2), 0.1, device=device)).moments
    assert torch.equal(moments[0], torch.full_like(moments[0], float(torch.tensor(0.1))))
    assert not moments[1].any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_moments_of_a_column_that_is_not_finite_are_nan(value, device):
    for step in (0, 7, 39):
        x = torch.ones(40, 3, device=device)
        x[step, 1] = value
        assert given_advantages(x).moments.isnan().tolist() == [[False, True, False]] * 2


def test_strided_inputs(device):
    args, options = inputs((21, 6, 5), device)
    expected = gae(*args, **options)

    def strided(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor) or tensor.dim() < 2:
            return tensor
        twice = torch.stack([tensor, tensor], dim=-1).transpose(0, 1).contiguous()
        return twice.transpose(0, 1)[..., 0]

    views = [strided(tensor) for tensor in args]
    assert not views[0].is_contiguous()
    result = gae(*views, **{name: strided(tensor) for name, tensor in options.items()})
    for ours, theirs in zip(result, expected, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.is_contiguous()


def test_leaves_its_inputs_alone(device):
    args, options = inputs((30, 70), device)
    tensors = [*args[:4], *options.values()]
    before = [tensor.clone() for tensor in tensors]
    gae(*args, **options)
    for tensor, copy in zip(tensors, before, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("columns", [1000, 4096, 9001])
def test_does_not_depend_on_the_number_of_threads(columns, dtype):
    args, options = inputs((50, columns), dtype=dtype)
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        results.append(gae(*args, **options))
    for result in results[1:]:
        for ours, first in zip(result, results[0], strict=True):
            assert torch.equal(ours, first)


@pytest.mark.parametrize(("dtype", "columns"), [(torch.float32, 4096), (torch.float64, 2048)])
def test_results_written_past_the_caches_are_the_same(dtype, columns):
    arguments, options = inputs((1024, columns), dtype=dtype, scaled=False)
    whole = gae(*arguments, **options)
    assert 2 * whole.advantages.nbytes >= 2**25  # kStreamBytes in csrc/gae.cpp
    for half in (slice(0, columns // 2), slice(columns // 2, None)):
        parts = (*(x[:, half] for x in arguments[:4]), *arguments[4:])
        part = gae(*parts, final_values=options["final_values"][:, half])
        for name, ours, theirs in zip(GAE._fields, part, whole, strict=True):
            assert torch.equal(ours, theirs[:, half]), name


def test_results_lie_away_from_the_inputs_within_a_page():
    args, _ = inputs((64, 1024), dtype=torch.float32, final_values=False, scaled=False)
    result = gae(*args)
    for theirs in (result.advantages, result.returns):
        for ours in args[:2]:
            distance = (theirs.data_ptr() - ours.data_ptr()) % 4096
            assert 960 <= distance <= 4096 - 960, distance  # a quarter of a page less a line


def test_each_result_keeps_its_memory(device):
    args, options = inputs((64, 1024), device)
    expected = reference.gae(*args, **options)
    for name in ("advantages", "returns"):
        kept = getattr(gae(*args, **options), name)  # the others are gone
        overwritten = [torch.full_like(kept, 7.0) for _ in range(4)]
        assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()
        torch.testing.assert_close(kept, getattr(expected, name))
        del overwritten


def test_without_avx2():
    """The instructions that every x86-64 has give the same results."""
    code = (
        "import torch, test_gae\n"
        "from mg2l.ops import native\n"
        "from mg2l.ops import gae, reference\n"
        "assert 'baseline' in native.cpu_build(), native.cpu_build()\n"
        "args, options = test_gae.inputs((70, 130), dtype=torch.float32)\n"
        "for ours, theirs in zip(gae(*args, **options), reference.gae(*args, **options)):\n"
        "    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)\n"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    environment["PYTHONPATH"] = os.path.dirname(__file__)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize("final_values", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_gradcheck(scaled, final_values, device):
    (rewards, values, terminated, truncated, *rates), options = inputs(
        (6, 3), device, scaled=scaled, final_values=final_values
    )
    names = list(options)
    if final_values:  # gradcheck perturbs every element, so every element must be a number
        options["final_values"] = options["final_values"].nan_to_num(1.0)

    def all_of(rewards: Tensor, values: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        named: dict[str, Any] = dict(zip(names, rest, strict=True))
        return tuple(gae(rewards, values, terminated, truncated, *rates, **named))

    leaves = [tensor.requires_grad_() for tensor in (rewards, values, *options.values())]
    assert torch.autograd.gradcheck(all_of, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_match_reference(shape, dtype, device):
    gradients = []
    for function in (gae, reference.gae):
        args, options = inputs(shape, device, dtype)
        options["final_values"] = options["final_values"].nan_to_num(1.0)
        leaves = [tensor.requires_grad_() for tensor in (*args[:2], *options.values())]
        advantages, returns, moments = function(*args, **options)
        (advantages.sin().sum() + returns.square().sum() + moments.sum()).backward()
        gradients.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*gradients, strict=True):
        if theirs is None:  # the plain loop over no steps reaches nothing
            assert not ours.any()
            continue
        # Sums over up to 100,000 elements of size 10.
        tolerance: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {}
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_unread_final_values_have_no_gradient(device):
    args, options = inputs((9, 4), device)
    final = options["final_values"].requires_grad_()
    std = options["value_std"].requires_grad_()
    gae(*args, **options).returns.sum().backward()
    read = args[3] & ~args[2]
    assert final.grad is not None
    assert std.grad is not None
    assert final.grad[read].all()
    assert not final.grad[~read].any()
    assert std.grad.isfinite()


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shape", [(7,), (5, 3), (0, 4), (3, 0)], ids=str)
def test_opcheck(shape, scaled, device):
    args, options = inputs(shape, device, scaled=scaled)
    options["final_values"] = options["final_values"].nan_to_num(1.0)
    leaves = [tensor.requires_grad_() for tensor in args[:2]]
    torch.library.opcheck(torch.ops.mg2l.gae.default, (*leaves, *args[2:]), options)
    flags, rates = args[2:4], args[4:]
    grads = [tensor.detach() for tensor in gae(*args, **options)[:2]]
    for has_final in (False, True):
        torch.library.opcheck(
            torch.ops.mg2l.gae_backward.default, (*grads, *flags, *rates, has_final)
        )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fake_agrees_with_the_real_operator(shape, device):
    args, options = inputs(shape, device, torch.float32)
    real = gae(*args, **options)
    with torch._subclasses.FakeTensorMode() as mode:
        fake_args: list[Any] = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args]
        fake_options: dict[str, Any] = {
            name: mode.from_tensor(tensor) for name, tensor in options.items()
        }
        fake = gae(*fake_args, **fake_options)
    for ours, theirs in zip(fake, real, strict=True):
        assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)
        assert ours.stride() == theirs.stride()


def test_fake_refuses_wrong_shapes():
    (rewards, values, *rest), _ = inputs((5, 3), torch.device("meta"))
    with pytest.raises(RuntimeError, match=r"gae: values must have shape \[T \+ 1, \*B\]"):
        gae(rewards, values[:-1], *rest)


def test_compiles_into_one_graph():
    args, options = inputs((20, 5))
    compiled = torch.compile(lambda *a: gae(*a, **options), fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(*args), gae(*args, **options), strict=True):
        assert torch.equal(ours, theirs)


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "scalar": ({"rewards": torch.tensor(1.0)}, r"rewards must have shape \[T, \*B\], got a scalar"),
    "half": (
        {"rewards": torch.zeros(5, 3).half()},
        "rewards must be float32 or float64, got float16",
    ),
    "values dtype": (
        {"values": torch.zeros(6, 3).double()},
        "values must be float32, got float64",
    ),
    "values without the last": (
        {"values": torch.zeros(5, 3)},
        r"values must have shape \[T \+ 1, \*B\] = \[6, 3\], got \[5, 3\]",
    ),
    "terminated as float": (
        {"terminated": torch.zeros(5, 3)},
        "terminated must be bool, got float32",
    ),
    "terminated shape": (
        {"terminated": torch.zeros(5, 4, dtype=torch.bool)},
        r"terminated must have shape \[T, \*B\] = \[5, 3\], got \[5, 4\]",
    ),
    "truncated as bytes": (
        {"truncated": torch.zeros(5, 3, dtype=torch.uint8)},
        "truncated must be bool, got uint8",
    ),
    "truncated shape": (
        {"truncated": torch.zeros(5, dtype=torch.bool)},
        r"truncated must have shape \[T, \*B\] = \[5, 3\], got \[5\]",
    ),
    "final_values dtype": (
        {"final_values": torch.zeros(5, 3, dtype=torch.int64)},
        "final_values must be float32, got int64",
    ),
    "final_values shape": (
        {"final_values": torch.zeros(6, 3)},
        r"final_values must have shape \[T, \*B\] = \[5, 3\], got \[6, 3\]",
    ),
    "mean alone": (
        {"value_mean": torch.zeros(3)},
        "value_mean and value_std must be given together, got only value_mean",
    ),
    "std alone": (
        {"value_std": torch.ones(3)},
        "value_mean and value_std must be given together, got only value_std",
    ),
    "mean that does not broadcast": (
        {"value_mean": torch.zeros(2), "value_std": torch.ones(3)},
        r"value_mean must broadcast to \[\*B\] = \[3\], got \[2\]",
    ),
    "std with too many axes": (
        {"value_mean": torch.zeros(3), "value_std": torch.ones(5, 3)},
        r"value_std must broadcast to \[\*B\] = \[3\], got \[5, 3\]",
    ),
    "mean dtype": (
        {"value_mean": torch.zeros(3).double(), "value_std": torch.ones(3)},
        "value_mean must be float32, got float64",
    ),
    "std dtype": (
        {"value_mean": torch.zeros(3), "value_std": torch.ones(3).double()},
        "value_std must be float32, got float64",
    ),
    "gamma": ({"gamma": 1.5}, r"gamma must be in \[0, 1\], got 1.5"),
    "gamma nan": ({"gamma": float("nan")}, r"gamma must be in \[0, 1\], got nan"),
    "lambda": ({"gae_lambda": -0.1}, r"gae_lambda must be in \[0, 1\], got -0.1"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case, device):
    change, message = REFUSALS[case]
    flags = torch.zeros(5, 3, dtype=torch.bool)
    arguments: dict[str, Any] = {
        "rewards": torch.zeros(5, 3),
        "values": torch.zeros(6, 3),
        "terminated": flags,
        "truncated": flags,
        "gamma": 0.9,
        "gae_lambda": 0.9,
        **change,
    }
    on_device: dict[str, Any] = {
        k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()
    }
    with pytest.raises(RuntimeError, match=f"^gae: {message}"):
        gae(**on_device)


BACKWARD_REFUSALS = {
    "scalar": ({"grad_advantages": torch.tensor(1.0)}, "grad_advantages must have shape"),
    "integers": (
        {"grad_advantages": torch.zeros(5, 3, dtype=torch.int32)},
        "grad_advantages must be float32 or float64, got int32",
    ),
    "returns": ({"grad_returns": torch.zeros(4, 3)}, r"grad_returns must have .* got \[4, 3\]"),
    "terminated": ({"terminated": torch.zeros(5, 3)}, "terminated must be bool, got float32"),
    "truncated": ({"truncated": torch.zeros(5, 3)}, "truncated must be bool, got float32"),
}


@pytest.mark.parametrize("case", BACKWARD_REFUSALS)
def test_backward_refuses(case):
    change, message = BACKWARD_REFUSALS[case]
    flags = torch.zeros(5, 3, dtype=torch.bool)
    grads = torch.zeros(5, 3)
    arguments: dict[str, Any] = {
        "grad_advantages": grads,
        "grad_returns": grads,
        "terminated": flags,
        "truncated": flags,
        **change,
    }
    with pytest.raises(RuntimeError, match=f"^gae_backward: {message}"):
        torch.ops.mg2l.gae_backward.default(*arguments.values(), 0.9, 0.9, False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "name", ["values", "terminated", "truncated", "final_values", "value_mean", "value_std"]
)
def test_refuses_tensors_on_two_devices(name):
    args, options = inputs((5, 3), "cuda", torch.float32)
    names = ("rewards", "values", "terminated", "truncated")
    arguments = {**dict(zip(names, args, strict=False)), **options}
    arguments[name] = arguments[name].cpu()
    with pytest.raises(RuntimeError, match=rf"{name} must be on the device of rewards \(cuda:0\)"):
        gae(**arguments, gamma=0.9, gae_lambda=0.9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("shape", [(8, 20000), (4096, 3), (1000, 100)], ids=str)
def test_cuda_agrees_with_cpu(shape):
    """Shapes for a thread a column and for chunks of time, on a stream of its own."""
    args, options = inputs(shape, "cuda", torch.float32)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        result = gae(*args, **options)
    stream.synchronize()
    cpu_args, cpu_options = inputs(shape, "cpu", torch.float32)
    for ours, theirs in zip(result, gae(*cpu_args, **cpu_options), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=2e-5)
