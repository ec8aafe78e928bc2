"""Interpolations within one YAML file."""

from pathlib import Path

import pytest

from mg2l.config.files import load_config
from mg2l.core.schema import ConfigError


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_iters: ${oc.env:HOME}", "only the name of a key"),
        ("n_iters: ${oc.env:NO_SUCH,3}", "only the name of a key"),
        ("main_save_path: x${oc.decode:a}", "only the name of a key"),
        ("main_save_path: ${${seed}}", "only the name of a key"),
        ("seed: ${n_iters}\nn_iters: ${seed}", "leads back to itself"),
        ("main_save_path: ${main_save_path}", "leads back to itself"),
        ("seed: ${ppo.nothing}", "nothing"),
        (
            "main_save_path: ${a0}\n"
            + "".join(f"a{i}: ${{a{i + 1}}}${{a{i + 1}}}\n" for i in range(40))
            + "a40: xx\n",
            "more than 100000 characters",
        ),
    ],
)
def test_nothing_but_names_of_keys(tmp_path: Path, text: str, message: str) -> None:
    """No resolver reads the environment, and no text grows without end."""
    file = tmp_path / "mine.yaml"
    file.write_text(f"algo_name: mappo\n{text}\n")
    with pytest.raises(ConfigError, match=message) as error:
        load_config(algo=str(file))
    assert "\n" not in str(error.value)
    assert str(Path.home()) not in str(error.value).replace(str(tmp_path), "")
