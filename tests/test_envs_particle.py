"""Physics and scenarios of the particle world against their definition in plain Python."""

import runpy
import textwrap
from pathlib import Path

import numpy as np
import particle_reference as reference
import pytest
import yaml

from mg2l.config.files import load_config
from mg2l.core.schema import ConfigError
from mg2l.envs import particle, registry
from mg2l.envs.particle import Bodies, ParticleEnv, physics
from mg2l.envs.particle import simulator as native
from mg2l.envs.particle.hunting import Hunting, HuntingConfig
from mg2l.envs.particle.spread import Spread, SpreadConfig
from mg2l.envs.particle.targets import MAX_TEST, target_tasks
from mg2l.envs.particle.world import distances, write_distances, write_offsets


def test_the_definition_in_numpy_is_the_compiled_physics():
    rng = np.random.default_rng(0)
    position = rng.uniform(-1.2, 1.2, (64, 4, 2))
    position[:, 1] = position[:, 0] + rng.normal(size=(64, 2)) * 0.1
    position[0, 1] = position[0, 0]
    velocity = rng.normal(size=(64, 4, 2))
    given = (
        rng.uniform(-2, 2, (64, 3, 2)), rng.uniform(-2, 2, (64, 1, 2)), np.full(4, 3.0),
        np.array([0.1, 0.15, 0.1, 0.05]), np.array([1.0, np.inf, 1.3, np.inf]),
        np.array([True, True, False, True]),
    )  # fmt: skip
    states = []
    for module in (native, physics):
        state = position.copy(), velocity.copy()
        for _ in range(5):
            module.step(*state, *given)
        out = np.zeros((64, 4, 20), np.float32)
        physics.write_positions(out, 0, state[0])
        module.write_offsets(out, 2, state[0], state[0], True, 0.5)
        module.write_distances(out, 8, state[0], state[0], True, 0.5)
        module.write_offsets(out, 11, state[0], state[0][:, :3])
        module.write_distances(out, 17, state[0], state[0][:, :3])
        states.append((*state, out, module.distances(state[0], state[0][:, :2])))
    for ours, theirs in zip(*states, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-6, atol=1e-9)
    for module in (native, physics):
        with pytest.raises(ValueError, match="actions must be numbers, got NaN"):
            module.step(*state, np.full((64, 3, 2), np.nan), *given[1:])


ROOT = Path(__file__).resolve().parents[1]


def spread(agents, landmarks, num_envs, length=50, n_tasks=0):
    config = SpreadConfig(length, n_agents=agents, n_landmarks=landmarks, n_tasks=n_tasks)
    return ParticleEnv(Spread(config), num_envs, length, seed=1)


def hunting(predators, prey, num_envs, length=50):
    config = HuntingConfig(length, n_agents=predators, n_prey=prey)
    return ParticleEnv(Hunting(config), num_envs, length, seed=1)


def crowd(rng, num_envs, bodies, reach):
    position = rng.uniform(-reach, reach, (num_envs, bodies, 2))
    return position, rng.normal(0, 0.5, position.shape)


@pytest.mark.parametrize("reach", [0.3, 1.1, 1.35])
@pytest.mark.parametrize("bodies", [1, 2, 9])
def test_physics_matches_definition(bodies, reach):
    """Crowded middle, walls, and beyond the walls; some bodies collide, some have a top speed."""
    rng = np.random.default_rng(bodies)
    num_envs = 20
    position, velocity = crowd(rng, num_envs, bodies, reach)
    actions = rng.uniform(-1, 1, position.shape)
    acceleration, size = rng.uniform(2, 6, bodies), rng.uniform(0.05, 0.2, bodies)
    max_speed = np.where(np.arange(bodies) % 3 == 0, np.inf, 0.7)
    collides = np.arange(bodies) % 4 != 1
    expected = [
        reference.step(
            position[n].tolist(), velocity[n].tolist(), actions[n].tolist(), acceleration.tolist(),
            size.tolist(), [None if np.isinf(m) else m for m in max_speed], collides.tolist(),
        )
        for n in range(num_envs)
    ]  # fmt: skip
    split = bodies // 2
    native.step(
        position, velocity, actions[:, :split], actions[:, split:],
        acceleration, size, max_speed, collides,
    )  # fmt: skip
    np.testing.assert_allclose(position, [e[0] for e in expected], rtol=0, atol=1e-12)
    np.testing.assert_allclose(velocity, [e[1] for e in expected], rtol=0, atol=1e-12)


def test_contacts_soften_over_the_margin():
    """The softplus region, 0.05 around the touch, where the kernel takes its shortcuts."""
    gaps = np.linspace(-0.06, 0.06, 241)
    position = np.zeros((len(gaps), 2, 2))
    position[:, 1, 0] = 0.3 + gaps
    velocity, still = np.zeros_like(position), np.zeros_like(position)
    two = Bodies.uniform(2, 1.0, size=0.15, collides=True)
    native.step(
        position, velocity, still, still[:, :0],
        two.acceleration, two.size, two.max_speed, two.collides,
    )  # fmt: skip
    push = np.array([reference.softplus_force(gap) for gap in gaps]) * 0.1
    np.testing.assert_allclose(velocity[:, 1, 0], push, rtol=1e-12, atol=1e-18)
    np.testing.assert_array_equal(velocity[:, 0], -velocity[:, 1])


def test_same_place_and_wall_line_stay_numbers():
    position = np.array([[[0.5, 0.5], [0.5, 0.5]], [[1.2, -1.2], [-1.2, 1.2]]])
    velocity, still = np.zeros_like(position), np.zeros_like(position)
    two = Bodies.uniform(2, 1.0, size=0.1, collides=True)
    native.step(
        position, velocity, still, still[:, :0],
        two.acceleration, two.size, two.max_speed, two.collides,
    )  # fmt: skip
    assert velocity[0, 0, 0] > 0 > velocity[0, 1, 0]
    np.testing.assert_array_equal(np.sign(velocity[1]), [[-1, 1], [1, -1]])


def test_step_refuses_what_does_not_fit():
    position = np.zeros((3, 2, 2))
    two = Bodies.uniform(2, 1.0, 0.1)
    rest = (two.acceleration, two.size, two.max_speed, two.collides)

    def call(pos=position, vel=position, actions=position, properties=rest):
        native.step(pos.copy(), vel.copy(), actions, actions[:, :0], *properties)

    call()
    with pytest.raises(ValueError, match=r"velocity must have shape \(3, 2, 2\), got \(3, 1, 2\)"):
        call(vel=np.zeros((3, 1, 2)))
    with pytest.raises(ValueError, match="together must have the shape"):
        call(actions=np.zeros((3, 1, 2)))
    with pytest.raises(ValueError, match=r"position must have shape \[envs, points, 2\]"):
        call(pos=np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"acceleration must have shape \(2,\), got \(3,\)"):
        call(properties=(np.ones(3), *rest[1:]))
    # Would be stepped in a copy and lost.
    with pytest.raises(TypeError, match="position must be a C-contiguous float64 array, got float"):
        call(pos=position.astype(np.float32))
    out = np.zeros((3, 2, 4), np.float32)
    with pytest.raises(ValueError, match="no room"):
        write_offsets(out, 2, position, position)
    with pytest.raises(ValueError, match="no room"):
        write_distances(out, -1, position, position)
    with pytest.raises(ValueError, match="do not fit"):
        distances(position, position[:2])


@pytest.mark.parametrize(("agents", "landmarks"), [(1, 1), (2, 3), (5, 7), (40, 3)])
def test_spread_matches_definition(agents, landmarks):
    env = spread(agents, landmarks, num_envs=4)
    tasks = np.arange(4) % len(env.tasks)
    obs, _ = env.reset(seed=3, task_ids=tasks)
    rng = np.random.default_rng(0)
    for _ in range(6):
        for n in range(4):
            here = env.world.agents[n].tolist(), env.world.landmarks[n].tolist()
            expected = [reference.spread_observation(*here, i) for i in range(agents)]
            np.testing.assert_allclose(obs[n], expected, rtol=1e-6, atol=1e-6)
        old_position, old_velocity = env.world.position.copy(), env.world.velocity.copy()
        actions = rng.uniform(-1, 1, (4, agents, 2))
        obs, rewards, *_ = env.step(actions)
        for n in range(4):
            moved = reference.step(
                old_position[n].tolist(), old_velocity[n].tolist(), actions[n].tolist(),
                [5.0] * agents, [0.15] * agents, [None] * agents, [False] * agents,
            )  # fmt: skip
            np.testing.assert_allclose(env.world.position[n], moved[0], rtol=0, atol=1e-12)
            pay = reference.spread_reward(
                moved[0], env.world.landmarks[n].tolist(), env.tasks.features[tasks[n]]
            )
            np.testing.assert_allclose(rewards[n], pay, rtol=1e-6)


@pytest.mark.parametrize(("predators", "prey"), [(1, 1), (3, 2), (4, 3), (20, 5)])
def test_hunting_matches_definition(predators, prey):
    num_envs, bodies = 12, predators + prey
    env = hunting(predators, prey, num_envs)
    tasks = np.arange(num_envs) % len(env.tasks)
    env.reset(seed=3, task_ids=tasks)
    marks = env.tasks.features[tasks]
    # Crowded, so that bodies touch: rewards of 10 and contact forces.
    position, velocity = crowd(np.random.default_rng(2), num_envs, bodies, 0.9)
    position[::2] *= 0.4
    obs = env.set_state(position, velocity, np.zeros((num_envs, 0, 2)), marks)
    rng = np.random.default_rng(0)
    touched = 0
    for _ in range(6):
        old_position, old_velocity = env.world.position.copy(), env.world.velocity.copy()
        scripted = env.scenario.scripted_actions(env.world)
        actions = rng.uniform(-1, 1, (num_envs, predators, 2))
        next_obs, rewards, *_ = env.step(actions)
        for n in range(num_envs):
            here = old_position[n].tolist()
            expected = [reference.hunting_observation(here, i) for i in range(predators)]
            np.testing.assert_allclose(obs[n], expected, rtol=1e-6, atol=1e-6)
            for p in np.flatnonzero(marks[n]):
                away = reference.flight(here[predators + p], here[:predators])
                np.testing.assert_allclose(scripted[n, p], away, rtol=0, atol=1e-12)
            moved, _ = reference.step(
                here, old_velocity[n].tolist(), [*actions[n].tolist(), *scripted[n].tolist()],
                [3.0] * bodies, [0.1] * predators + [0.05] * prey,
                [1.0] * predators + [1.2] * prey, [True] * bodies,
            )  # fmt: skip
            np.testing.assert_allclose(env.world.position[n], moved, rtol=0, atol=1e-12)
            pay = [
                reference.hunting_reward(moved[:predators], moved[predators:], marks[n], i)
                for i in range(predators)
            ]
            touched += sum(p > 5 for p in pay)
            np.testing.assert_allclose(rewards[n], pay, rtol=1e-6, atol=1e-6)
        obs = next_obs
    assert touched or predators == 1


def test_sight_ends_at_its_radius():
    env = hunting(1, 2, num_envs=1)
    position = [[[0.0, 0.0], [1.41, 0.0], [0.0, -1.4141]]]
    obs = env.set_state(position, np.zeros((1, 3, 2)), np.zeros((1, 0, 2)), [[1.0, 0.0]])
    np.testing.assert_allclose(obs[0, 0], [0, 0, 1.41, 0, 0, 0, 1.41, 0], rtol=1e-6)


def test_decoys_wander_symmetrically_and_differently_each_time():
    """Uniform in the whole square, not in its upper right quarter; other draws in every step,
    episode and sub-environment."""
    num_envs, length = 64, 60
    env = hunting(2, 3, num_envs, length)
    env.reset(seed=0, task_ids=np.zeros(num_envs, int))
    drawn = []
    for _ in range(2 * length):
        drawn.append(env.scenario.scripted_actions(env.world)[:, 1:])
        env.step(np.zeros((num_envs, 2, 2)))
    samples = np.stack(drawn).reshape(-1, 2)
    assert len(np.unique(samples, axis=0)) == len(samples)
    assert (np.abs(samples.mean(axis=0)) < 0.02).all()  # 5 standard errors: 0.023
    np.testing.assert_allclose(samples.std(axis=0), 1 / np.sqrt(3), atol=0.01)
    assert samples.min() < -0.99
    assert samples.max() > 0.99


def test_prey_caught_in_the_same_place_flees():
    env = hunting(1, 1, num_envs=1)
    env.set_state(np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), np.zeros((1, 0, 2)), [[1.0]])
    flight = env.scenario.scripted_actions(env.world)
    np.testing.assert_allclose(np.linalg.norm(flight), 1)
    _, rewards, *_ = env.step(np.zeros((1, 1, 2)))
    assert np.isfinite(rewards).all()
    assert np.isfinite(env.world.position).all()
    assert np.ptp(env.world.position[0, :, 0]) > 0


def test_starts_fill_their_squares():
    env = spread(2, 3, num_envs=2000)
    env.reset(seed=0)
    for points, reach in ((env.world.agents, 1.0), (env.world.landmarks, 0.9)):
        np.testing.assert_allclose(points.max(axis=(0, 1)), reach, atol=0.01)
        np.testing.assert_allclose(points.min(axis=(0, 1)), -reach, atol=0.01)
        assert np.abs(points).max() <= reach
    assert not env.world.velocity.any()


def test_clipped_actions_stay_inside_the_walls():
    env = spread(3, 3, num_envs=8, length=10_000)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    direction = rng.choice([-9.0, 9.0], (8, 3, 2))
    for _ in range(300):
        env.step(direction)
        assert np.abs(env.world.position).max() < 1.2


def test_set_state_refuses_other_shapes():
    env = spread(2, 3, num_envs=1)
    with pytest.raises(ValueError, match="landmarks must have shape"):
        env.set_state(
            np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), np.ones((1, 3))
        )


def test_target_tasks():
    tasks = target_tasks(3, 2, 0, seed=0)
    assert [p["targets"] for p in tasks.params[:3]] == [[0, 1], [0, 2], [1, 2]]
    assert tasks.n_train == 3
    assert [sum(row) for row in tasks.features] == [2, 2, 2, 1, 1, 1, 3]
    few = target_tasks(5, 2, 4, seed=0)
    assert few.n_train == 4
    assert few.features[:10].sum() == 20  # held-out pairs come first among the test tasks
    assert len(few) == 2**5 - 1
    assert len(np.unique(few.features, axis=0)) == len(few)
    assert list(few.names) == list(target_tasks(5, 2, 4, seed=0).names)
    assert list(few.names[:4]) != list(target_tasks(5, 2, 4, seed=1).names[:4])


def test_target_tasks_of_many_objects():
    tasks = target_tasks(60, 20, 50, seed=0)
    assert tasks.n_train == 50
    assert 0 < len(tasks.test_ids) <= MAX_TEST
    assert len(np.unique(tasks.features, axis=0)) == len(tasks)
    with pytest.raises(ValueError, match="n_tasks must be at most 3"):
        SpreadConfig(n_agents=2, n_landmarks=3, n_tasks=4)
    with pytest.raises(ValueError, match="n_tasks must be at most 2"):
        HuntingConfig(n_prey=2, n_tasks=3)
    with pytest.raises(ValueError, match="n_tasks=0 trains on all"):
        SpreadConfig(n_agents=20, n_landmarks=60)


def test_several_targets_count_by_the_nearest():
    env = hunting(1, 2, num_envs=1)
    position = [[[0.0, 0.0], [0.5, 0.0], [-0.3, 0.0]]]
    still = np.zeros((1, 3, 2))
    env.set_state(position, still, np.zeros((1, 0, 2)), [[1.0, 1.0]])
    _, rewards, *_ = env.advance(np.zeros((1, 1, 2)), np.zeros((1, 2, 2)))
    np.testing.assert_allclose(rewards, -0.03, rtol=1e-5)


@pytest.mark.parametrize("name", ["mpe-spread", "mpe-hunting", "mpe-prey"])
def test_yaml_values_build_an_environment(name):
    values = yaml.safe_load((ROOT / "configs" / "env" / f"{name}.yaml").read_text())
    config_class = registry.config_class(values.pop("family"))
    own = config_class.__dataclass_fields__
    config = config_class(**{key: value for key, value in values.items() if key in own})
    env = registry.make(config, 3)
    assert env.max_ep_len == 100
    assert env.tasks.n_train == values["n_tasks"]
    assert len(env.tasks.test_ids)


def test_prey_is_hunting_under_its_old_name():
    folder = ROOT / "configs" / "env"
    texts = [(folder / f"{name}.yaml").read_text() for name in ("mpe-prey", "mpe-hunting")]
    values = [text.partition("\n")[2] for text in texts]  # below the line that says what it is
    assert values[0] == values[1]


def test_targets_are_drawn_red():
    env = spread(2, 3, num_envs=1)
    far = [[[-1.0, 1.0], [1.0, 1.0]]]
    landmarks = [[[-0.65, -0.65], [0.0, 0.0], [0.65, 0.65]]]
    env.set_state(far, np.zeros((1, 2, 2)), landmarks, [[1.0, 0.0, 1.0]])
    picture = env.render()
    row, column = int((1.3 + 0.65) / 2.6 * 256), int((1.3 - 0.65) / 2.6 * 256)
    np.testing.assert_array_equal(picture[row, column], [220, 60, 60])  # lower left
    np.testing.assert_array_equal(picture[column, row], [220, 60, 60])  # upper right
    np.testing.assert_array_equal(picture[128, 128], [60, 60, 60])


def test_every_agent_has_a_colour_of_its_own():
    for name, agents in (("mpe-spread", 2), ("mpe-hunting", 3)):
        env = registry.make(name, 1)
        assert isinstance(env, ParticleEnv)
        bodies, _ = env.scenario.colors(env.tasks.features[0])
        assert len({tuple(color) for color in bodies[:agents].tolist()}) == agents
        assert bodies[:agents, 2].min() > bodies[:agents, 0].max()  # no agent is red, or grey


def test_scenario_in_the_docstring_works():
    assert particle.__doc__
    code = textwrap.dedent(particle.__doc__.split("::\n", 1)[1].split("``examples")[0])
    setup = (
        "from dataclasses import dataclass\nimport numpy as np\n"
        "from mg2l.envs import EnvConfig, TaskSet, particle, registry\n"
        "from mg2l.envs.particle import Bodies, ParticleScenario\n"
        "from mg2l.envs.particle.world import distances, write_offsets, write_positions\n"
    )
    names: dict[str, object] = {"__name__": "tag"}
    exec(setup + code, names)
    env = registry.make("tag", 4)
    obs, _ = env.reset()
    _, rewards, *_ = env.step(np.zeros((4, 3, 2)))
    assert obs.shape == (4, 3, 6)
    np.testing.assert_array_equal(rewards[:, -1], 0)
    assert (rewards[:, :-1] < 0).all()


def test_example_scenario():
    example = runpy.run_path(str(ROOT / "examples" / "custom_scenario.py"))
    env = registry.make("spacing", 64)
    distance = env.tasks.features[env.task_ids].reshape(-1, 1, 1, 1)
    assert example["play"](distance) > example["play"](float(distance.mean())) + 1


def test_more_agents_than_the_landmarks_have_room_for_are_named():
    message = "n_agents=5 and n_landmarks=3: n_tasks must be at most 1, the ways to choose 3 of 3"
    with pytest.raises(ConfigError, match=message):
        load_config(env="mpe-spread", overrides=["n_agents=5"])
