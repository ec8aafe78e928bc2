"""Images through convolutions: where they lie, whose networks they reach, that they are seen."""

from typing import Any

import numpy as np
import pytest
import torch
from method_helpers import TINY, tiny_config, tiny_learner
from torch.nn import functional as F

import mg2l.train as train
from mg2l import cli
from mg2l.core.schema import ConfigError
from mg2l.nn.vision import ImageEncoder, StackedConv, Vision
from mg2l.training import loop
from mg2l.training.learner import Learner
from mg2l.training.metrics import read_metrics

VISION = Vision((5, 6, 2), 5 * 6 * 2 + 3)
CNN = {"obs": "cnn", "n_agents": 4, "map_size": 12, "food_per_kind": 4}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 3])
def test_convolutions_are_one_per_group(groups, stride):
    conv = StackedConv(groups, 2, 4, stride)
    x = torch.randn(groups, 7, 2, 6, 5)
    y = conv(x)
    for group in range(groups):
        alone = F.conv2d(x[group], conv.weight[group], conv.bias[group], stride)
        torch.testing.assert_close(y[group], alone)


@pytest.mark.parametrize(("groups", "count"), [(1, 1), (3, 1), (1, 2), (3, 2)])
def test_each_agents_image_and_the_rest(groups, count):
    encoder: Any = ImageEncoder(VISION, groups, count)
    agents, rows, rest = 3, 4, 5
    x = torch.randn(agents, rows, count * VISION.observation + rest)
    y = encoder(x)
    assert y.shape[-1] == x.shape[-1] + encoder.gain == count * VISION.width + rest
    torch.testing.assert_close(y[..., -rest:], x[..., -rest:])
    for agent in range(agents):
        for index in range(count):
            one = x[agent, :, index * VISION.observation :][:, : VISION.observation]
            image = one[:, : VISION.pixels].reshape(rows, 5, 6, 2).permute(0, 3, 1, 2)
            for conv in encoder.convs:
                group = agent if groups > 1 else 0
                image = F.relu(F.conv2d(image, conv.weight[group], conv.bias[group], conv.stride))
            expected = torch.cat([image.flatten(1), one[:, VISION.pixels :]], 1)
            found = y[agent, :, index * VISION.width :][:, : VISION.width]
            torch.testing.assert_close(found, expected)


def test_observations_of_foragers_begin_with_their_image():
    learner = tiny_learner("mappo", "magent-gather", **CNN)
    env = learner.env
    assert env.image is not None
    height, width, channels = env.image
    obs, _ = env.reset(seed=0)
    image = obs[..., : height * width * channels].reshape(*obs.shape[:2], *env.image)
    # The first channel is walls, and the second foragers, of whom each sees itself in the middle.
    assert set(np.unique(image[..., 0])) <= {0, 1}
    assert (image[:, :, height // 2, width // 2, 1] == 1).all()


@pytest.mark.parametrize("algo", ["mg2l", "mappo", "ma-pearl", "focal"])
@pytest.mark.parametrize("share", [True, False])
def test_trains(algo, share, tmp_path):
    values = {**TINY, **CNN, "share_policy": share, "main_save_path": tmp_path}
    values["hidden_sizes_mlp"] = "[16]"
    words = [
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in values.items()
    ]
    assert train.run(*cli.parse([f"--algo={algo}", "--env=magent-gather", *words])) == 0
    (folder,) = tmp_path.glob("*/*/*")
    assert len(read_metrics(folder / "metrics.jsonl")) == 2


def test_gradients_reach_every_filter():
    learner: Any = tiny_learner("mg2l", "magent-gather", **CNN)
    filters = {
        "actor": learner.actor.body.image,
        "critic": learner.critic.body.image,
        "encoder": learner.inference.encoder.aggregator.image,
    }
    before = {
        name: [p.detach().clone() for p in image.parameters()] for name, image in filters.items()
    }
    loop.iterate(learner, 0)
    for name, image in filters.items():
        for old, new in zip(before[name], image.parameters(), strict=True):
            assert not torch.equal(old, new), name


def test_priorities_with_images_sum_to_one():
    learner: Any = tiny_learner("mg2l", "magent-gather", **CNN)
    inference = learner.inference
    context = inference.contexts(torch.tensor([0, 1]))
    weights = inference.acting.aggregator.priorities(context)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4))


def test_refusals():
    with pytest.raises(ConfigError, match="obs=cnn needs observations that begin with an image"):
        Learner(tiny_config(obs="cnn"), torch.device("cpu"))
    with pytest.raises(ValueError, match="at least 5 x 5 cells, got"):
        Vision((4, 9, 2), 100)
