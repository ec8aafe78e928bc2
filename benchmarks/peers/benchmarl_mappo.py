"""BenchMARL's MAPPO on VMAS's spread, in an environment that has both.

An iteration goes from one collected batch to the next: its training, then the next collection.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from typing import Any

from benchmarl.algorithms import MappoConfig
from benchmarl.environments import VmasTask
from benchmarl.experiment import Callback, Experiment, ExperimentConfig
from benchmarl.models.mlp import MlpConfig

ENVS, STEPS, EPOCHS = 32, 100, 15


class _Turns(Callback):
    """Lets BenchMARL's own loop continue only when it is this contestant's turn."""

    def __init__(self) -> None:
        super().__init__()
        self.turn, self.done = threading.Semaphore(0), threading.Semaphore(0)

    def __reduce__(self) -> tuple[type[_Turns], tuple[()]]:
        return _Turns, ()  # an experiment saves its callbacks, and semaphores cannot be

    def on_batch_collected(self, batch: Any) -> None:
        """Has collected: the iteration is over."""
        self.done.release()
        self.turn.acquire()


def make(hidden: int, minibatches: int) -> Callable[[], object]:
    """An iteration with networks ``hidden`` wide."""
    config = ExperimentConfig.get_from_yaml()
    config.loggers, config.create_json, config.evaluation, config.render = [], False, False, False
    config.share_policy_params = False
    config.on_policy_collected_frames_per_batch = ENVS * STEPS
    config.on_policy_n_envs_per_worker = ENVS
    config.on_policy_n_minibatch_iters = EPOCHS
    config.on_policy_minibatch_size = ENVS * STEPS // minibatches
    config.max_n_iters, config.max_n_frames = 1_000_000, None
    config.save_folder = tempfile.mkdtemp()
    algorithm = MappoConfig.get_from_yaml()
    algorithm.share_param_critic = False
    task = VmasTask.SIMPLE_SPREAD.get_from_yaml()
    task.config |= {"n_agents": 2, "max_steps": STEPS}

    def network() -> Any:
        model = MlpConfig.get_from_yaml()
        model.num_cells = [hidden, hidden]
        return model

    turns = _Turns()
    experiment = Experiment(
        task=task, algorithm_config=algorithm, model_config=network(),
        critic_model_config=network(), seed=0, config=config, callbacks=[turns],
    )  # fmt: skip
    threading.Thread(target=experiment.run, daemon=True).start()
    turns.done.acquire()

    def iterate() -> None:
        turns.turn.release()
        turns.done.acquire()

    return iterate
