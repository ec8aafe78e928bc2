"""Render an environment: ``python -m mg2l.envs.render mpe-spread --task=3 --out=spread.gif``.

Random actions, with ``--team`` those of a scripted team, or with ``--run=RUN`` those of a trained
one, after it has explored the task for ``--shots`` episodes and inferred what it is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mg2l import cli
from mg2l.core.schema import ConfigError
from mg2l.envs import EnvConfig, gate, registry, video
from mg2l.envs.base import TaskSet
from mg2l.envs.command import env_config
from mg2l.envs.random_actions import random_actions

TEAMS = ("random", "informed", "blind")
"""Teams that are not trained; the scripted ones know the task, or do not."""


def _check_task(task: int, tasks: TaskSet) -> None:
    if not 0 <= task < len(tasks):
        raise ConfigError(
            f"--task must be in [0, {len(tasks)}), of which the first {tasks.n_train} are for "
            f"training, got {task}"
        )


def team_policy(config: EnvConfig, team: str) -> gate.Policy | None:
    """A team of `TEAMS`; None acts at random.

    Raises:
        ConfigError: the family has no such team.
    """
    if team == "random":
        return None
    teams = registry.scripted(config)
    if not isinstance(teams, gate.ScriptedTeams):
        raise ConfigError(
            f"--team={team}: {type(config).__name__} has bounds on returns, but no scripted team"
        )
    return teams.informed if team == "informed" else next(iter(teams.blind.values()))


def record_scripted(config: EnvConfig, task: int, seed: int, team: str = "random") -> video.Frames:
    """Frames of one episode of a team that is not trained.

    Args:
        config: of the environment.
        task: number of the task.
        seed: random seed.
        team: one of `TEAMS`.

    Raises:
        ConfigError: there is no such task or team, or what draws the pictures is missing.
    """
    policy = team_policy(config, team)
    env = video.RecordedEnv(registry.make(config, 1, seed))
    try:
        _check_task(task, env.tasks)
        rng = np.random.default_rng(seed)
        _, info = env.reset(seed, [task])
        for _ in range(env.max_ep_len):
            actions = random_actions(env, rng, info) if policy is None else policy(env.env)
            _, _, _, _, info = env.step(actions)
        return env.frames
    finally:
        env.close()


def record_trained(
    run: Path, name: str | None, task: int, seed: int, shots: int, trust: bool = False
) -> video.Frames:
    """Frames of an episode of a trained team, each agent acting on the task it inferred.

    Raises:
        ConfigError: no run lies there, it is of another family, or as in `record_scripted`.
        CheckpointError: the run has no whole checkpoint.
    """
    # Imported here: environments must not depend on the learning code above them.
    from mg2l.evaluation.meta_test import MetaTest
    from mg2l.evaluation.trained import load

    learner = load(run, trust=trust)
    try:
        _check_task(task, learner.env.tasks)
        if name is not None and type(env_config(name)) is not type(learner.config.env):
            raise ConfigError(f"{name} conflicts with --run={run}, a run of another family")
        test = MetaTest(learner, [task], 1, seed)
        try:
            recorded = test.collector.env = video.RecordedEnv(test.env)
            test.play(shots)
        finally:
            test.close()
        return recorded.frames[-test.steps :]
    finally:
        learner.close()


@cli.command
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = cli.Parser(prog="python -m mg2l.envs.render", description=__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="environment, or a YAML file")
    parser.add_argument(
        "--task", type=cli.at_least(0), default=0, help="number of the task (default 0)"
    )
    parser.add_argument(
        "--team", choices=TEAMS, default="random", help="who acts without --run (default random)"
    )
    parser.add_argument("--run", type=Path, help="folder of a run: record its team")
    parser.add_argument(
        "--shots",
        type=cli.at_least(0),
        default=1,
        help="exploration episodes before it (default 1)",
    )
    parser.add_argument("--out", type=Path, help=".gif, .webp or .mp4 (default NAME.gif)")
    parser.add_argument(
        "--fps", type=cli.at_least(1), default=20, help="pictures per second (default 20)"
    )
    parser.add_argument("--seed", type=cli.at_least(0), default=0, help="random seed (default 0)")
    parser.add_argument("--trust", action="store_true", help=cli.TRUST)
    options = parser.parse_args(arguments)
    if options.run is None and options.name is None:
        raise ConfigError("give the NAME of an environment, or --run=RUN")
    # RUN lies in ENV/ALGO/, unless it was moved.
    stem = Path(options.name or options.run.resolve().parent.parent).stem or "video"
    path = options.out or Path(f"{stem}.gif")
    video.check(path)
    if options.run is not None:
        frames = record_trained(
            options.run, options.name, options.task, options.seed, options.shots, options.trust
        )
    else:
        config = env_config(options.name)
        frames = record_scripted(config, options.task, options.seed, options.team)
    video.write(path, frames, options.fps)
    print(f"{path}: {len(frames)} pictures")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
