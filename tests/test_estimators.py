import json
import math
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch

from mg2l import estimators
from mg2l.estimators import (
    CRITICS,
    ESTIMATORS,
    bounds,
    club,
    conditional_mi_reduction,
    distributions,
    donsker_varadhan,
    fit_mi,
    info_nce,
    jsd,
    l1out,
    mine,
    nwj,
    smile,
    table,
)
from mg2l.estimators.notes import Notes, entropy
from mg2l.ops import pairwise_lse


def optimal(known_mi, count=2000, seed=0):
    """Samples of a normal pair, and the scores of the true density ratio."""
    rho = math.sqrt(1 - math.exp(-2 * known_mi))
    x, y = distributions.correlated_normal(1, known_mi).sample(count, seed)
    x, y = x.double(), y.double()
    conditional = torch.distributions.Normal(rho * x.t(), math.sqrt(1 - rho**2))
    return conditional.log_prob(y), torch.distributions.Normal(0.0, 1.0).log_prob(y), x, y


def reduced(matrix, clip=None):
    """Scores of a matrix of which the rows are queries."""
    own = torch.arange(len(matrix))
    return pairwise_lse(matrix, torch.eye(len(matrix), dtype=matrix.dtype), own, clip=clip)


# Known information.


@pytest.mark.parametrize(
    ("known", "mi"),
    [
        (distributions.bivariate_normal(0.75), 0.4133),
        (distributions.additive_uniform(0.1), 1.7094),
        (distributions.additive_uniform(0.75), 0.3333),
        (distributions.student_t(1, 1), 0.2242),
        (distributions.student_t(2, 1), 0.4319),
        (distributions.student_t(3, 3), 0.1787),
        (distributions.student_t(5, 2), 0.4482),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_known_information(known, mi):
    assert known.mi == pytest.approx(mi, abs=5e-5)
    x, y = known.sample(50, seed=1)
    assert x.shape == y.shape == (50, x.shape[1])
    assert x.dtype == torch.float32
    assert torch.equal(x, known.sample(50, seed=1)[0])
    assert not torch.equal(x, known.sample(50, seed=2)[0])


@pytest.mark.parametrize("mi", [2.0, 4.0, 6.0, 8.0, 10.0])
def test_correlated_normals_have_the_correlation_of_their_information(mi):
    known = distributions.correlated_normal(5, mi)
    x, y = known.sample(20_000, seed=0)
    rho = torch.stack([x[:, i].double().dot(y[:, i].double()) / len(x) for i in range(5)])
    found = -0.5 * (1 - rho.square().clamp(max=1 - 1e-12)).log().sum()
    assert known.mi == mi
    # The product of near-equal normals: its error grows with what 1 - rho^2 leaves.
    wanted = math.sqrt(1 - math.exp(-2 * mi / 5))
    torch.testing.assert_close(rho, torch.full_like(rho, wanted), rtol=0, atol=0.05)
    assert float(found) > 0


# Bounds at the optimal critic, whose values are known.


def test_bounds_at_the_true_density_ratio():
    """With ``f = log p(y|x) / p(y)`` every lower bound is tight but for InfoNCE's ceiling."""
    true = 0.4133
    conditional, marginal, _, _ = optimal(true)
    ratio = (conditional - marginal).t()  # queries x, keys y
    scores = reduced(ratio)
    for bound in (info_nce, donsker_varadhan):
        assert float(bound(scores)) == pytest.approx(true, abs=0.06)
    assert float(nwj(reduced(ratio + 1))) == pytest.approx(true, abs=0.08)
    assert float(smile(reduced(ratio, clip=5.0))) == pytest.approx(true, abs=0.06)
    assert float(l1out(reduced(conditional))) == pytest.approx(true, abs=0.06)
    assert float(club(reduced(conditional))) > true


def test_a_critic_that_knows_nothing_gives_nothing():
    scores = reduced(torch.zeros(64, 64, dtype=torch.float64))
    for bound in (info_nce, donsker_varadhan, smile, club, l1out):
        assert float(bound(scores)) == pytest.approx(0, abs=1e-9)
    assert float(nwj(scores)) == pytest.approx(-1 / math.e)
    assert float(nwj(reduced(torch.ones(64, 64, dtype=torch.float64)))) == pytest.approx(0)


def test_info_nce_never_exceeds_its_ceiling():
    scores = reduced(50 * torch.eye(32, dtype=torch.float64))
    assert float(info_nce(scores)) == pytest.approx(math.log(32), abs=1e-6)


def test_bounds_by_hand():
    matrix = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0], [-1.0, 0.0, 0.5]], dtype=torch.float64)
    scores, own = reduced(matrix), matrix.diagonal()
    off = matrix[~torch.eye(3, dtype=torch.bool)]
    assert float(nwj(scores)) == pytest.approx(float(own.mean() - (off - 1).exp().mean()))
    assert float(donsker_varadhan(scores)) == pytest.approx(
        float(own.mean() - off.exp().mean().log())
    )
    assert float(club(scores)) == pytest.approx(float(own.mean() - off.mean()))
    wanted = -torch.nn.functional.softplus(-own).mean() - torch.nn.functional.softplus(off).mean()
    assert float(jsd(matrix)) == pytest.approx(float(wanted))
    gap = conditional_mi_reduction(scores, scores)
    assert float(gap) == pytest.approx(float(l1out(scores) - info_nce(scores)))


def test_mine_has_the_value_of_donsker_varadhan_and_the_gradient_of_its_average():
    matrix = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    average = torch.zeros((), dtype=torch.float64)
    first = mine(reduced(matrix), average)
    torch.testing.assert_close(first, donsker_varadhan(reduced(matrix)))
    off = ~torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(average, matrix.detach()[off].exp().mean())
    average.fill_(7.0)
    (gradient,) = torch.autograd.grad(mine(reduced(matrix), average, decay=1.0), matrix)
    wanted = torch.eye(6, dtype=torch.float64) / 6 - off * matrix.detach().exp() / (30 * 7.0)
    torch.testing.assert_close(gradient, wanted)


# Critics.


@pytest.mark.parametrize("name", CRITICS)
def test_critics_reduce_their_own_matrix(name):
    torch.manual_seed(0)
    critic = CRITICS[name](3, 2, (8,), 4).double()
    x, y = torch.randn(9, 3, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    matrix = critic.matrix(x, y)
    assert matrix.shape == (9, 9)
    for clip in (None, 0.1):
        for ours, theirs in zip(critic(x, y, clip=clip), reduced(matrix, clip), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_bilinear_critic_without_hidden_layers_is_one_matrix():
    critic = estimators.bilinear(3, 2, (), 4)
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    form = next(critic.parameters())
    torch.testing.assert_close(critic.matrix(x, y), x @ form.t() @ y.t())


# Fits.


@pytest.mark.parametrize("name", ESTIMATORS)
def test_fit_comes_near_the_truth(name):
    x, y = distributions.bivariate_normal(0.75).sample(4000, seed=0)
    found = fit_mi(x, y, name, steps=200, batch_size=128, hidden=(32,), progress=False)
    assert found.bound == ESTIMATORS[name].bound
    assert found.low <= found.mi <= found.high
    if name != "club":  # loose: see docs/estimators.md
        assert found.mi == pytest.approx(0.4133, abs=0.12)
    assert found.ceiling == (pytest.approx(math.log(800)) if name == "info_nce" else math.inf)


@pytest.mark.parametrize("name", ["info_nce", "smile", "l1out"])
def test_independent_variables_share_nothing(name):
    x, y = distributions.correlated_normal(2, 0.0).sample(3000, seed=0)
    found = fit_mi(x, y, name, steps=100, batch_size=128, hidden=(16,), progress=False)
    assert found.mi == pytest.approx(0, abs=0.08)


@pytest.mark.parametrize("bijection", [lambda x: x**3, torch.asinh, torch.exp])
def test_ranks_make_monotone_maps_of_coordinates_invisible(bijection):
    x, y = distributions.bivariate_normal(0.75).sample(2000, seed=0)
    options: dict[str, Any] = {"steps": 30, "batch_size": 64, "hidden": (16,), "progress": False}
    plain = fit_mi(x.double(), y.double(), **options)
    mapped = fit_mi(bijection(x.double()), bijection(y.double()), **options)
    assert mapped.mi == pytest.approx(plain.mi, abs=1e-3)


def test_fits_repeat_and_leave_the_global_generator_alone():
    x, y = distributions.student_t(1, 1).sample(500, seed=0)
    options: dict[str, Any] = {"steps": 10, "batch_size": 32, "progress": False}
    before = torch.random.get_rng_state()
    first = fit_mi(x, y, **options)
    assert torch.equal(before, torch.random.get_rng_state())
    assert fit_mi(x, y, **options) == first
    assert fit_mi(x, y, seed=1, **options) != first


OPTIONS: dict[str, Any] = {"steps": 50, "batch_size": 64, "hidden": (16,), "progress": False}

UNITS: dict[str, tuple[Any, Any]] = {
    "scale": (3.7, 0.0),
    "offset": (1.0, 1e6),
    "sign": (-1.0, 0.0),
    "tiny": (1e-200, 0.0),
    "huge": (1e200, 1e203),
    "by coordinate": (torch.tensor([1e-9, -4e7]), torch.tensor([-1.0, 1e12])),
}


@pytest.mark.parametrize("name", ["info_nce", "nwj", "club", "l1out"])
@pytest.mark.parametrize("preprocess", ["rank", "standardise", "none"])
def test_units_do_not_matter(name, preprocess):
    x, y = (v.double() for v in distributions.correlated_normal(2, 0.8).sample(400, seed=0))
    plain = fit_mi(x, y, name, preprocess=preprocess, check=False, **OPTIONS).mi
    for unit, (scale, offset) in UNITS.items():
        if unit == "by coordinate" and preprocess == "none":
            continue  # keeps the ratios of coordinates
        mapped = fit_mi(
            scale * x + offset, y / 7 - 3, name, preprocess=preprocess, check=False, **OPTIONS
        )
        assert mapped.mi == pytest.approx(plain, rel=1e-5, abs=1e-6), unit


@pytest.mark.parametrize("constant", [0.0, 5.0, -1e30])
def test_constant_coordinates_change_nothing(constant):
    x, y = distributions.bivariate_normal(0.75).sample(400, seed=0)
    column = torch.full_like(x, constant)
    wide = torch.cat([column, x], 1), torch.cat([y, column], 1)
    for name in ("info_nce", "l1out"):
        assert fit_mi(*wide, name, **OPTIONS) == fit_mi(x, y, name, **OPTIONS)
    with pytest.warns(UserWarning, match="y is constant: there is nothing to share"):
        found = fit_mi(x, column, "l1out", **OPTIONS)
    assert (found.mi, found.low, found.high) == (0, 0, 0)


def test_a_critic_of_ones_own_is_given_every_coordinate():
    x, y = distributions.bivariate_normal(0.75).sample(400, seed=0)
    wide = torch.cat([torch.ones_like(x), x], 1)
    critic = estimators.separable(2, 1, (16,), 4)
    assert fit_mi(wide, y, critic=critic, **OPTIONS | {"lr": 1e-2}).mi > 0.1


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "shape": ({"x": torch.zeros(20)}, r"x must be floats \[N, size\] .*got torch.float32 \[20\]"),
    "width": ({"x": torch.zeros(20, 0)}, r"x must have at least 1 coordinate, got \[20, 0\]"),
    "list": ({"y": [[0.0]] * 20}, r"y must be a tensor \[N, size\], got list"),
    "nan": ({"y": torch.full((20, 1), math.nan)}, "y must be finite"),
    "infinity": ({"x": torch.full((20, 1), math.inf)}, "x must be finite"),
    "pairs": ({"y": torch.zeros(19, 1)}, "x and y must be N >= 8 pairs, got 20 and 19"),
    "few": ({"x": torch.zeros(7, 1), "y": torch.zeros(7, 1)}, "N >= 8 pairs, got 7 and 7"),
    "two dtypes": ({"y": torch.zeros(20, 1).double()}, "one dtype .* torch.float32 .*float64"),
    "estimator": ({"estimator": "mi"}, "estimator must be one of info_nce, nwj, .* got 'mi'"),
    "estimators": ({"estimator": ["nwj"]}, r"estimator must be one of .* got \['nwj'\]"),
    "critic": ({"critic": "best"}, "critic must be one of separable, bilinear, .* got 'best'"),
    "class": ({"critic": estimators.cosine}, "critic must be one of .* or a Critic, got <class"),
    "preprocess": ({"preprocess": "x"}, "preprocess must be one of rank, standardise, none"),
    "hidden": ({"hidden": 64}, r"hidden must be integers such as \(64, 64\), got 64"),
    "no width": ({"hidden": (8, 0)}, r"each of hidden must be an integer in \[1, 65536\], got 0"),
    "features": ({"features": 10**30}, r"features must be an integer in \[1, 65536\], got 10000"),
    "seed": ({"seed": -1}, r"seed must be an integer in \[0, 9223372036854775807\], got -1"),
    "density": (
        {"estimator": "club", "critic": "separable"},
        "club needs a conditional density: critic 'gaussian'",
    ),
    "own critic": (
        {"critic": estimators.bilinear(2, 1, (), 1)},
        r"critic must take x and y, \[N, 1",
    ),
    "diverges": ({"lr": 1e30, "steps": 20}, r"critic of info_nce diverges.*lower lr=1e\+30"),
}
REFUSALS |= {
    f"{name} {dtype}": (
        {name: torch.zeros(20, 1, dtype=dtype)},
        f"{name} must be floats .* {dtype}",
    )
    for name in ("x", "y")
    for dtype in (torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.complex64)
}
REFUSALS |= {
    f"steps {value}": ({"steps": value}, r"steps must be an integer in \[1, 1000000000\], got ")
    for value in (0, -1, 10**30, 1.5, True, "10", None, math.nan)
}
REFUSALS |= {
    f"batch_size {value}": ({"batch_size": value}, r"batch_size must be an integer in \[2, ")
    for value in (1, 0, -3, 2.0, 10**30)
}
REFUSALS |= {
    f"held_out {value}": ({"held_out": value}, "held_out must be a fraction in")
    for value in (0, 0.0, -0.1, 1.5, 5, math.nan, math.inf, True, "0.2", None)
}
REFUSALS |= {
    f"held_out {value}": ({"held_out": value}, "held_out must leave 2 pairs to train on, got")
    for value in (1.0, 1, 0.96)
}
REFUSALS |= {
    f"lr {value}": ({"lr": value}, r"lr must be a number in \(0, inf\), got")
    for value in (0, -1e-3, math.nan, math.inf, "fast", None, True)
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case):
    change, message = REFUSALS[case]
    g = torch.Generator().manual_seed(0)
    arguments: dict[str, Any] = {
        "x": torch.randn(20, 1, generator=g),
        "y": torch.randn(20, 1, generator=g),
    }
    with pytest.raises(ValueError, match=message) as caught:
        fit_mi(**arguments | change, progress=False)
    assert "\n" not in str(caught.value)


# What an estimate says about itself.


def noted(x, y, name, count=1, **options):
    """An estimate with so many notes, each of them a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fit_mi(x, y, name, **OPTIONS | options)
    assert [str(warning.message) for warning in caught] == list(found.notes)
    assert len(found.notes) == count, found.notes
    return found


def labelled(count=600):
    """Labels 0..3, and what is near them."""
    g = torch.Generator().manual_seed(0)
    label = torch.randint(4, (count, 1), generator=g).float()
    return label, label + 0.2 * torch.randn(count, 1, generator=g)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_nothing_is_said_where_nothing_is_wrong(name):
    x, y = distributions.bivariate_normal(0.75).sample(1500, seed=0)
    assert noted(x, y, name, 0, steps=150).bound == ESTIMATORS[name].bound


@pytest.mark.parametrize("name", ["club", "l1out"])
def test_labels_have_no_density(name):
    label, near = labelled()
    found = noted(near, label, name, 2 if name == "club" else 1, check=False, steps=100)
    assert found.bound == "neither"
    assert f"coordinates [0] of y take few values: {name} needs a density" in found.notes[0]
    assert not noted(near, label, "info_nce", 0).notes


def test_more_than_the_entropy_of_labels_is_said():
    label, near = labelled()
    found = noted(label, near, "club", 1, steps=200, lr=1e-2)
    assert found.bound == "upper"  # far above, and above all the same
    assert "more than the entropy H(x) = 1.39 of the values of x" in found.notes[0]
    notes = Notes()
    notes.on_value("nwj", "lower", (1.6, 1.5, 1.7), label, near, 100)
    assert notes.broken
    assert "nwj is 1.60, more than the entropy H(x) = 1.39" in notes.texts[0]


def test_the_entropy_of_labels_is_that_of_their_frequencies():
    g = torch.Generator().manual_seed(0)
    share = torch.tensor([0.5, 0.3, 0.2])
    label = torch.multinomial(share, 20_000, replacement=True, generator=g).float().unsqueeze(1)
    assert entropy(label) == pytest.approx(-float((share * share.log()).sum()), abs=0.02)
    assert entropy(torch.randn(200, 1, generator=g)) is None
    assert entropy(torch.zeros(200, 2)) == 0


def test_an_upper_bound_below_a_lower_one_is_said():
    """``y = +-x + noise``: a Gaussian ``q(y | x)`` knows the spread, and no sign."""
    g = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 1500, 1, generator=g)
    y = x * torch.where(torch.rand(1500, 1, generator=g) < 0.5, -1, 1) + 0.05 * noise
    found = noted(x, y, "l1out", 1, steps=300, lr=1e-2)
    assert found.bound == "neither"
    assert "less than the lower bound info_nce = 0." in found.notes[0]
    assert noted(x, y, "l1out", 0, steps=300, lr=1e-2, check=False).mi == found.mi


def test_pairs_that_repeat_are_said():
    x, y = distributions.bivariate_normal(0.75).sample(200, seed=0)
    found = noted(x.repeat(5, 1), y.repeat(5, 1), "info_nce", 1)
    assert found.bound == "neither"
    assert "% of the held-out pairs are training pairs as well" in found.notes[0]


def test_what_held_out_pairs_cannot_show_is_said():
    x, y = distributions.correlated_normal(2, 12.0).sample(300, seed=0)
    found = noted(x, y, "info_nce", 1, steps=300, lr=1e-2)
    assert found.bound == "lower"
    assert "log K = 4.09 with K = 60 held-out pairs: near it and above" in found.notes[0]
    notes = Notes()
    notes.on_value("smile", "neither", (9.0, 8.0, 10.0), x, y, 60)
    assert "more than the 60 held-out pairs can show: log K(K - 1) = 8.17" in notes.texts[0]


def test_less_than_nothing_is_said():
    x, y = distributions.correlated_normal(1, 0.0).sample(100, seed=0)
    found = noted(x, y, "info_nce", 1, steps=600, lr=1e-2)
    assert found.bound == "lower"
    assert "information is never negative" in found.notes[0]


def test_every_bound_says_what_it_is():
    for name in ("info_nce", "nwj", "donsker_varadhan", "mine", "smile", "jsd", "club", "l1out"):
        text = getattr(bounds, name).__doc__.lower()
        assert "bound" in text
        assert "bias" in text
        assert "arxiv" in text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("outlier", [1e7, -1e30])
def test_ranks_see_past_an_outlier(outlier, dtype):
    x, y = (v.to(dtype) for v in distributions.bivariate_normal(0.75).sample(400, seed=0))
    plain = fit_mi(x, y, **OPTIONS)
    x[5] = outlier
    found = fit_mi(x, y, **OPTIONS)
    assert found.mi == pytest.approx(plain.mi, abs=0.05)
    assert found.mi > 0.2
    assert found.notes == plain.notes


@pytest.mark.parametrize("preprocess", ["standardise", "none"])
@pytest.mark.parametrize("held_out", [False, True])
def test_outliers_that_hide_the_other_values_are_said(held_out, preprocess):
    x, y = (v.float() for v in distributions.bivariate_normal(0.75).sample(400, seed=0))
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    x[order[0] if held_out else order[-1]] = 1e7
    note = r"coordinates \[0\] of x have outliers .* take preprocess='rank'"
    with pytest.warns(UserWarning, match=note):
        found = fit_mi(x, y, preprocess=preprocess, **OPTIONS)
    assert found.bound == "lower"  # what is not seen is only missing
    with pytest.warns(UserWarning, match=note):
        assert fit_mi(x, y, "club", preprocess=preprocess, **OPTIONS).bound == "neither"


def test_few_values_are_no_outliers():
    x, y = (v.float() for v in distributions.bivariate_normal(0.75).sample(400, seed=0))
    rare = (x > 2).to(x.dtype)
    assert not fit_mi(rare, y, preprocess="standardise", **OPTIONS).notes


# The table.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: results"),
        (["results.jsonl", "--steps=0"], "--steps: must be a whole number from 1 to 1000000000"),
        (["results.jsonl", "--samples=nine"], "--samples: must be a whole number from 10"),
        (["results.jsonl", "--write=page.md"], "page.md: has no place for the table"),
        (["results.jsonl", "--write=no.md"], "no.md: there is no such file"),
        (["other.jsonl"], "other.jsonl: distribution must be a text, got an integer"),
        (["."], ".: cannot be read: "),
    ],
)
def test_mistakes_in_the_tables_command_are_one_line(tmp_path, monkeypatch, capsys, words, message):
    (tmp_path / "page.md").write_text("no table\n")
    (tmp_path / "other.jsonl").write_text('{"distribution": 3}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["table", *words])
    with pytest.raises(SystemExit) as end:
        table.main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "results.jsonl").exists()


def test_the_table_continues_where_it_was_and_fills_a_page(tmp_path):
    results, page = tmp_path / "a" / "results.jsonl", tmp_path / "page.md"
    page.write_text(f"before\n{table.START}\nold\n{table.END}\nafter\n")
    command = [sys.executable, "-m", "mg2l.estimators.table", str(results), "--write", str(page)]
    command += ["--seeds", "1", "--samples", "64", "--steps", "1"]
    subprocess.run(command, check=True, capture_output=True)
    lines = results.read_text().splitlines()
    assert len(lines) == len(distributions.known()) * len(ESTIMATORS)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| Student-t 3x3, 3 degrees | 0.1787 |" in text
    first = json.loads(lines[0]) | {"mi": 123.0}
    results.write_text("\n".join([json.dumps(first), *lines[1:-3], '{"broken']))
    subprocess.run(command, check=True, capture_output=True)
    assert "+123.00" in page.read_text()
