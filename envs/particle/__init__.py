"""Particle worlds: discs that accelerate, collide and bounce off soft walls in a square.

A family is one class of one page. It defines which bodies and tasks there are, where they
begin, what agents see and what they are paid; the world (``world.py``) does the rest::

    @dataclass
    class TagConfig(EnvConfig):
        n_agents: int = 3

    class Tag(ParticleScenario):
        "Catch the last agent."

        def __init__(self, config: TagConfig) -> None:
            self.n_agents = config.n_agents
            self.bodies = Bodies.uniform(config.n_agents, acceleration=4.0, size=0.1)
            self.tasks = TaskSet([{"speed": 1.0}], np.ones((1, 1), np.float32), ["fast"], 1)
            self.obs_dim = 2 + 2 * (config.n_agents - 1)
            self.n_draws = 2 * config.n_agents

        def place(self, draws, position, landmarks):
            position[:] = 2 * draws.reshape(position.shape) - 1

        def observe(self, world, obs):
            write_positions(obs, 0, world.agents)
            write_offsets(obs, 2, world.agents, world.agents, skip_self=True)

        def reward(self, world):
            return -distances(world.agents, world.agents[:, -1:])[:, 0].T

    registry.register("tag", TagConfig, particle.factory(Tag))

``examples/custom_scenario.py`` is such a family from end to end.
"""

from mg2l.envs import registry
from mg2l.envs.particle import scripted
from mg2l.envs.particle.bounty import Bounty, BountyConfig
from mg2l.envs.particle.goals import Goals, GoalsConfig
from mg2l.envs.particle.hunting import Hunting, HuntingConfig
from mg2l.envs.particle.replay import replay, replays
from mg2l.envs.particle.spread import Spread, SpreadConfig
from mg2l.envs.particle.weights import Weights, WeightsConfig
from mg2l.envs.particle.world import Bodies as Bodies
from mg2l.envs.particle.world import ParticleEnv as ParticleEnv
from mg2l.envs.particle.world import ParticleScenario as ParticleScenario
from mg2l.envs.particle.world import World as World
from mg2l.envs.particle.world import factory as factory

registry.register("mpe-spread", SpreadConfig, factory(Spread), scripted.spread)
registry.register("mpe-hunting", HuntingConfig, factory(Hunting), scripted.hunt)
registry.register("mpe-goals", GoalsConfig, factory(Goals), scripted.goals)
registry.register("mpe-weights", WeightsConfig, factory(Weights), scripted.weights)
registry.register("mpe-bounty", BountyConfig, factory(Bounty), scripted.bounty)
registry.register_replayer(registry.Replayer(replays, replay))
