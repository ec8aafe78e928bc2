"""Tasks that are a hidden set of targets among look-alike objects."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from mg2l.envs.base import TaskSet

MAX_TRAIN = 10_000  # n_tasks=0 asks for all subsets: their number explodes
MAX_TEST = 256
_ENUMERATE = 20_000


def target_tasks(
    n_objects: int, n_targets: int, n_train: int, seed: int, what: str = "target"
) -> TaskSet:
    """Training tasks: sets of ``n_targets`` objects; test tasks: the sets not trained on.

    Test tasks are the held-out sets of ``n_targets`` objects, and sets of other sizes lie beyond
    the distribution; where all sets of ``n_targets`` are trained on, the others are the test tasks.
    At most ``MAX_TEST`` of both (a seeded choice, spread over the sizes, when there are more).

    Args:
        n_objects: objects to choose from.
        n_targets: targets of a training task, at most ``n_objects``.
        n_train: training tasks; 0 is all, in lexicographic order, fewer are a seeded choice.
        seed: seed of the choice.
        what: name of the objects in task names.

    Returns:
        A task set whose features are the ``[K, n_objects]`` multi-hot target sets.

    Raises:
        ValueError: there are fewer sets than ``n_train``, or far too many to train on all.
    """
    total = comb(n_objects, n_targets)
    if n_train > total:
        raise ValueError(
            f"n_tasks must be at most {total}, the ways to choose {n_targets} of {n_objects} "
            f"{what}s, got {n_train}"
        )
    if n_train == 0 and total > MAX_TRAIN:
        raise ValueError(
            f"n_tasks=0 trains on all tasks, but there are {total} ways to choose {n_targets} of "
            f"{n_objects} {what}s; set n_tasks"
        )
    rng = np.random.default_rng(seed)
    train = _choose(n_objects, n_targets, n_train or total, set(), rng)
    test = _choose(n_objects, n_targets, min(total - len(train), MAX_TEST), set(train), rng)
    held_out = len(test)
    sizes = [size for size in range(1, n_objects + 1) if size != n_targets]
    for i, size in enumerate(sizes):
        share = (MAX_TEST - len(test)) // (len(sizes) - i)
        test += _choose(n_objects, size, min(comb(n_objects, size), share), set(), rng)

    chosen = [*train, *test]
    features = np.zeros((len(chosen), n_objects), np.float32)
    for row, targets in zip(features, chosen, strict=True):
        row[list(targets)] = 1
    return TaskSet(
        params=[{"targets": list(targets)} for targets in chosen],
        features=features,
        names=[f"{what} " + "+".join(map(str, targets)) for targets in chosen],
        n_train=len(train),
        n_test=held_out or None,
    )


def _choose(
    n: int, size: int, count: int, taken: set[tuple[int, ...]], rng: np.random.Generator
) -> list[tuple[int, ...]]:
    """``count`` distinct subsets outside ``taken``: all in order, or a random choice."""
    if comb(n, size) <= _ENUMERATE:
        free = [subset for subset in combinations(range(n), size) if subset not in taken]
        if count == len(free):
            return free
        return [free[i] for i in rng.permutation(len(free))[:count]]
    chosen: dict[tuple[int, ...], None] = {}
    while len(chosen) < count:
        subset = tuple(int(i) for i in np.sort(rng.permutation(n)[:size]))
        if subset not in taken:
            chosen[subset] = None
    return list(chosen)
