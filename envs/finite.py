"""A guard against environments whose numbers are NaN or infinite."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mg2l.envs.base import EnvError, VectorEnv


class NonFiniteStepError(EnvError):
    """An environment gave an observation or a reward that is NaN or infinite."""


def require_finite(env: VectorEnv, what: str, values: ArrayLike, step: int) -> None:
    """Check that numbers are finite, at the cost of one sum.

    Args:
        env: the environment.
        what: ``observation`` or ``reward``.
        values: ``[N, A, obs]`` or ``[N, A]``.
        step: steps since the reset.

    Raises:
        NonFiniteStepError: one of them is NaN or infinite; the message says where.
    """
    numbers = np.asarray(values)
    row = numbers.ravel()
    with np.errstate(all="ignore"):
        if np.isfinite(np.dot(row, row)):
            return
    found = np.argwhere(~np.isfinite(numbers))
    if not len(found):
        return  # only the sum of their squares is too large
    env_id, agent, *number = found[0].tolist()
    raise NonFiniteStepError(
        f"the environment gave {'an' if what == 'observation' else 'a'} {what} of "
        f"{numbers[tuple(found[0])]}{f' (number {number[0]} of it)' if number else ''} to agent "
        f"{agent} in {env.place(env_id)}, "
        f"{f'at step {step}' if step else 'at the reset'}; "
        f"{len(found)} of the {numbers.size} numbers of this step are not finite"
    )
