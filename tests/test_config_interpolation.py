"""Interpolations in YAML files: of keys of the same file, of another one, of the defaults."""

from pathlib import Path

import pytest

from mg2l.config.files import load_config
from mg2l.core.schema import ConfigError


def test_a_value_may_name_another_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("algo_name: mappo\nactor_lr: 3e-4\ncritic_lr: ${actor_lr}\n")
    config = load_config(algo=str(file))
    assert config.ppo.actor_lr == config.ppo.critic_lr == 3e-4


def test_a_value_may_name_one_of_another_file_or_a_default(tmp_path: Path) -> None:
    env, algo, expt = (tmp_path / f"{kind}.yaml" for kind in ("env", "algo", "expt"))
    env.write_text("family: mpe-spread\nn_rollout_threads: 6\nn_ae_rollout_threads: ${ppo_epoch}\n")
    algo.write_text("algo_name: focal\nupdate_contexts: ${n_rollout_threads}\n")
    expt.write_text("n_rollout_threads: 8\nmain_save_path: runs/${algo_name}-${encoder.lr}\n")
    config = load_config(str(expt), str(algo), str(env))
    assert vars(config.algo)["update_contexts"] == config.rollout.n_rollout_threads == 8
    assert config.rollout.n_ae_rollout_threads == config.ppo.ppo_epoch == 15
    assert config.main_save_path == "runs/focal-0.002"


def test_what_an_interpolation_makes_is_validated_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("algo_name: mappo\nclip_param: ${n_rollout_threads}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: clip_param must be in \(0, 1\), got 32"):
        load_config(algo=str(file))


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
            f"main_save_path: {'${load_model_path}' * 400}\nload_model_path: {'x' * 400}",
            "more than 100000 characters",
        ),
    ],
)
def test_nothing_but_names_of_keys(tmp_path: Path, text: str, message: str) -> None:
    """No resolver reads the environment, and no text grows without end."""
    file = tmp_path / "mine.yaml"
    file.write_text(f"{text}\n")
    with pytest.raises(ConfigError, match=message) as error:
        load_config(expt=str(file))
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)
    assert str(Path.home()) not in str(error.value).replace(str(tmp_path), "")
