import numpy as np
from numpy.typing import NDArray

TIME_STEP: float
DAMPING: float
WALL: float

def step(
    position: NDArray[np.float64],
    velocity: NDArray[np.float64],
    actions: NDArray[np.floating],
    scripted: NDArray[np.floating],
    acceleration: NDArray[np.float64],
    size: NDArray[np.float64],
    max_speed: NDArray[np.float64],
    collides: NDArray[np.bool_],
) -> None: ...
def write_positions(
    out: NDArray[np.float32], column: int, observers: NDArray[np.float64]
) -> None: ...
def write_offsets(
    out: NDArray[np.float32],
    column: int,
    observers: NDArray[np.float64],
    points: NDArray[np.float64],
    skip_self: bool = False,
    radius: float = ...,
) -> None: ...
def write_distances(
    out: NDArray[np.float32],
    column: int,
    observers: NDArray[np.float64],
    points: NDArray[np.float64],
    skip_self: bool = False,
    radius: float = ...,
) -> None: ...
def distances(
    observers: NDArray[np.float64], points: NDArray[np.float64]
) -> NDArray[np.float64]: ...
