"""Robots whose joints are divided among agents, in MuJoCo (the package ``mujoco``).

Multi-agent MuJoCo is Peng et al., 2021 (FACMAC, arXiv:2003.06709); the tasks are those of Rakelly
et al., 2019 (PEARL, arXiv:1903.08254).
"""

from collections.abc import Callable
from typing import Any

from mg2l.envs import optional, registry
from mg2l.envs.base import VectorEnv
from mg2l.envs.mujoco import config as keys
from mg2l.envs.mujoco import opengl, scripted
from mg2l.envs.mujoco.replay import replay, replays


def _factory(name: str) -> Callable[[Any, int, int], VectorEnv]:
    def build(config: Any, num_envs: int, seed: int) -> VectorEnv:
        opengl.choose()
        optional.load("mujoco", "mujoco")
        from mg2l.envs.mujoco import env

        made: VectorEnv = getattr(env, name)(config, num_envs, seed)
        return made

    return build


registry.register("mujoco-cheetah-dir", keys.CheetahDirConfig, _factory("CheetahDirEnv"))
registry.register(
    "mujoco-cheetah-vel", keys.CheetahVelConfig, _factory("CheetahVelEnv"), scripted.speeds
)
registry.register(
    "mujoco-cheetah-motor", keys.CheetahMotorConfig, _factory("CheetahMotorEnv"), scripted.motors
)
registry.register("mujoco-hopper-param", keys.HopperParamConfig, _factory("HopperParamEnv"))
registry.register("mujoco-walker-param", keys.WalkerParamConfig, _factory("WalkerParamEnv"))
registry.register("mujoco-ant-dir", keys.AntDirConfig, _factory("AntDirEnv"), scripted.directions)
registry.register_replayer(registry.Replayer(replays, replay))
