"""Environment families: one contract (``base``), one registry, one folder per suite."""

from mg2l.envs import lbf as lbf  # each registers its families
from mg2l.envs import magent as magent
from mg2l.envs import mujoco as mujoco
from mg2l.envs import particle as particle
from mg2l.envs import rware as rware
from mg2l.envs.base import EnvConfig as EnvConfig
from mg2l.envs.base import TaskSet as TaskSet
from mg2l.envs.base import VectorEnv as VectorEnv
