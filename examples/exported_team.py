"""Exported agents explore a task, infer it, and act: ``python examples/exported_team.py EXPORT 3``.

EXPORT is what ``python -m mg2l.export`` wrote, 3 the task; a third word is the Python file or the
module that registers an environment of your own. Nothing that trained them is needed.
"""

import sys

import numpy as np

from mg2l.core.plugins import import_source
from mg2l.deploy.agent import Agent
from mg2l.envs import registry

SHOTS = 2

folder, task = sys.argv[1], int(sys.argv[2])
described = Agent(folder, 0).manifest["environment"]
for module in sys.argv[3:]:  # your own code, never what an exported folder names
    import_source(module)
env = registry.make(registry.config_class(described["family"])(**described["config"]), num_envs=1)
team = [Agent(folder, index, seed=index) for index in range(env.num_agents)]
for episode in range(SHOTS + 1):
    seen, info = env.reset(task_ids=[task])
    for agent in team:
        if agent.needs_features:
            agent.set_task(env.tasks.features[task])
        if agent.infers and episode == SHOTS:
            agent.infer()
        agent.reset()
    total, over = 0.0, False
    while not over:
        masks = info.get("action_mask", [[None] * len(team)])[0]
        alive = info.get("active", [[True] * len(team)])[0]
        actions = [agent.act(seen[0, i], masks[i]) for i, agent in enumerate(team)]
        before, (seen, rewards, ended, cut, info) = seen, env.step(np.stack(actions)[None])
        for i, agent in enumerate(team):
            after = info["final_obs"][0, i]
            agent.observe(before[0, i], actions[i], rewards[0, i], after, alive[i])
        total, over = total + float(rewards.mean()), bool((ended | cut).all())
    print(f"episode {episode}: mean return of the agents {total:.2f}")
