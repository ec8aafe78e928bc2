"""A call of a launcher, what must come out, and how far off what came out may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass
class Case:
    """One call of a launcher."""

    function: str
    inputs: dict[str, Any]
    outputs: dict[str, Array]
    """Undefined until the call."""

    exact: dict[str, Array]
    """What the outputs must be, computed in float64."""

    plain: dict[str, Array]
    """The same from plain torch in the precision of the case."""

    dtype: type[np.floating]

    rounded: dict[str, Array] = field(default_factory=dict)
    """What outputs in bfloat16 must be before they are rounded."""

    units: dict[str, int] = field(default_factory=dict)
    """Units in the last place that an output may be off by, where not 16."""

    finish: Callable[[], None] = lambda: None
    """Called after the call: makes of the outputs what can be compared."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What the launcher is called with."""
        return {**self.inputs, **self.outputs}


def largest_errors(case: Case) -> dict[str, tuple[float, float]]:
    """The largest error of every output, and the largest error allowed.

    That is twice the error of plain torch in the same precision, plus 16 units in the last place of
    the largest number (inputs are of order 1): the kernels add in another order. What was not
    written is NaN, and so is the error then, which is not smaller than anything.
    """
    epsilon = float(np.finfo(case.dtype).eps)
    errors = {}
    for name, exact in case.exact.items():
        plain_error = float(_distance(case.plain[name], exact).max(initial=0))
        allowed = 2 * plain_error + case.units.get(name, 16) * epsilon * float(
            np.abs(exact[np.isfinite(exact)]).max(initial=1)
        )
        errors[name] = float(_distance(case.outputs[name], exact).max(initial=0)), allowed
    return errors


def _distance(a: Array, b: Array) -> Array:
    """Absolute difference; equal infinities have no difference."""
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0, np.abs(a - b))
