"""Interpolations within one YAML file."""

from pathlib import Path

import pytest

from mg2l.loading import load_config
from mg2l.schema import ConfigError


def test_a_value_may_name_another_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("algo_name: mappo\nactor_lr: 3e-4\ncritic_lr: ${actor_lr}\n")
    config = load_config(algo=str(file))
    assert config.ppo.actor_lr == config.ppo.critic_lr == 3e-4


def test_an_unknown_name_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("algo_name: mappo\ncritic_lr: ${actr_lr}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml.*actr_lr") as error:
        load_config(algo=str(file))
    assert "\n" not in str(error.value)
