"""The particle world as its definition reads, in plain Python: what tests compare with."""

import math

TIME_STEP, DAMPING, FORCE, MARGIN = 0.1, 0.25, 100.0, 1e-3


def softplus_force(gap):
    x = -gap / MARGIN
    return FORCE * MARGIN * (max(x, 0.0) + math.log1p(math.exp(-abs(x))))


def step(position, velocity, actions, acceleration, size, max_speed, collides):
    """One step of one world: lists of [x, y] in, new lists out."""
    count = len(position)
    force = [[a * acceleration[b] for a in actions[b]] for b in range(count)]
    for a in range(count):
        for b in range(count):
            if a != b and collides[a] and collides[b]:
                delta = [position[a][i] - position[b][i] for i in range(2)]
                distance = math.hypot(*delta)
                push = softplus_force(distance - size[a] - size[b])
                for i in range(2):
                    force[a][i] += push * delta[i] / distance
        for i in range(2):
            for wall in (1.2, -1.2):
                delta_wall = position[a][i] - wall
                push = softplus_force(abs(delta_wall) - size[a] - 0.2)
                force[a][i] += push * math.copysign(1.0, delta_wall)
    new_position, new_velocity = [], []
    for b in range(count):
        moved = [velocity[b][i] * (1 - DAMPING) + force[b][i] * TIME_STEP for i in range(2)]
        speed = math.hypot(*moved)
        if max_speed[b] is not None and speed > max_speed[b]:
            moved = [component / speed * max_speed[b] for component in moved]
        new_velocity.append(moved)
        new_position.append([position[b][i] + moved[i] * TIME_STEP for i in range(2)])
    return new_position, new_velocity


def spread_observation(agents, landmarks, i):
    others = [agent for j, agent in enumerate(agents) if j != i]
    seen = list(agents[i])
    for point in landmarks + others:
        seen += [point[0] - agents[i][0], point[1] - agents[i][1]]
    return seen


def spread_reward(agents, landmarks, targets):
    total = 0.0
    for landmark, counts in zip(landmarks, targets, strict=True):
        if counts:
            total -= min(math.dist(agent, landmark) for agent in agents)
    return total * len(agents)


def hunting_observation(bodies, i):
    others = [body for j, body in enumerate(bodies) if j != i]
    offsets, lengths = [], []
    for body in others:
        length = math.dist(body, bodies[i])
        near = length < 1.414
        offsets += [body[0] - bodies[i][0], body[1] - bodies[i][1]] if near else [0.0, 0.0]
        lengths.append(length if near else 0.0)
    return [*bodies[i], *offsets, *lengths]


def hunting_reward(predators, prey, targets, i):
    marked = [p for p, counts in zip(prey, targets, strict=True) if counts]
    distances = [min(math.dist(predator, p) for p in marked) for predator in predators]
    return -0.1 * sum(distances) + (10.0 if distances[i] < 0.15 else 0.0)


def flight(prey, predators):
    nearest = min(predators, key=lambda predator: math.dist(predator, prey))
    length = math.dist(nearest, prey)
    return [(prey[0] - nearest[0]) / length, (prey[1] - nearest[1]) / length]
