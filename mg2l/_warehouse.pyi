from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

class Warehouses:
    def __init__(
        self,
        layouts: Sequence[NDArray[np.uint8]],
        copies: int,
        robots: int,
        reach: int,
        requests: int,
        reward: str,
    ) -> None: ...
    def begin(
        self,
        copy: int,
        layout: int,
        cells: NDArray[np.integer[Any]],
        directions: NDArray[np.integer[Any]],
        requests: NDArray[np.integer[Any]],
    ) -> None: ...
    def restore(
        self,
        copy: int,
        layout: int,
        robots: NDArray[np.int64],
        shelves: NDArray[np.int64],
        requests: NDArray[np.int64],
    ) -> None: ...
    def step(
        self, actions: NDArray[np.integer[Any]], draw: Callable[[int, int], int]
    ) -> NDArray[np.float32]: ...
    def observe(self) -> NDArray[np.float32]: ...
    def state(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]: ...
