"""The command line, the YAML files and the schema behind them."""

from typing import Any

import pytest
import yaml
from config_helpers import refusal

from mg2l import cli
from mg2l.config import files as loading
from mg2l.config.algorithms import algorithms
from mg2l.config.files import load_config
from mg2l.config.older import RETIRED
from mg2l.config.saved import config_from_yaml, config_to_yaml, flat, upgrade
from mg2l.envs import registry

FAMILIES = registry.names()
ALGORITHMS = [("mpe-spread", name) for name in algorithms.names()]

# Every key of the original code's YAML files that still means something, none at its default.
ORIGINAL = {
    "expt": """
        seed: 7
        gpu_id: -1
        n_iters: 20
        save_interval: 3
        sample_ae_interval: 6
        train_ae_interval: 2
        log_wandb: false
        log_interval: 4
        save_model: false
        load_model: false
        main_save_path: ./somewhere
        load_model_path: ./elsewhere
        hidden_sizes_mlp: [32, 16]
        n_heads: 2
        n_blocks: 1
        context_dim: 20
        lr: 1e-3
        dist: deterministic
        kl_weight: 0.3
    """,
    "algo": """
        algo_name: mg2l
        n_training_threads: 1
        share_policy: true
        use_centralized_V: false
        algo_hidden_size: 32
        layer_N: 2
        use_ReLU: false
        use_popart: true
        use_valuenorm: false
        use_feature_normalization: false
        use_orthogonal: false
        gain: 0.5
        use_recurrent_policy: true
        use_naive_recurrent_policy: false
        recurrent_N: 2
        data_chunk_length: 5
        actor_lr: 1e-4
        critic_lr: 2e-4
        opti_eps: 1e-6
        weight_decay: 1e-2
        use_clipped_value_loss: false
        clip_param: 0.1
        num_mini_batch: 2
        entropy_coef: 0.02
        value_loss_coef: 0.5
        use_max_grad_norm: false
        max_grad_norm: 5
        use_gae: false
        gamma: 0.9
        gae_lambda: 0.8
        use_proper_time_limits: false
        use_huber_loss: false
        use_value_active_masks: false
        use_policy_active_masks: false
        huber_delta: 2
        use_linear_lr_decay: false
    """,
    "env": """
        family: mpe-spread
        max_ep_len: 20
        n_agents: 2
        n_tasks: 3
        ae_batch_size: 10
        ae_updates_per_iter: 5
        n_init_rollouts: 2
        ae_buffer_size: 100
        ppo_epoch: 3
        n_rollout_threads: 4
        n_ae_rollout_threads: 2
    """,
}


def leaf(config, name):
    """Value of a key, wherever it lives."""
    (found,) = [value for path, value in flat(config).items() if path.rpartition(".")[2] == name]
    return found


def parsed(*argv):
    config, _ = cli.parse(list(argv))
    return config


@pytest.fixture
def write(tmp_path):
    def _write(name, text):
        path = tmp_path / name
        lines = [line.strip() for line in text.strip().splitlines()]
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    return _write


def test_defaults():
    config, options = cli.parse([])
    assert config.algo_name == "mg2l"
    assert type(config.env) is registry.config_class("mpe-spread")
    assert options == cli.Options("default", "mg2l", "mpe-spread", None, False)
    assert config.rollout.n_rollout_threads == 32
    assert leaf(config, "ae_updates_per_iter") == 50


def test_the_original_command_line():
    line = "--expt=default --algo=mg2l --env=mpe-spread gpu_id=0 n_iters=200 seed=1"
    config = parsed(*line.split())
    assert (config.gpu_id, config.n_iters, config.seed) == (0, 200, 1)
    assert parsed(*line.replace("=default", " default").replace("=mpe", " mpe").split()) == config


@pytest.mark.parametrize("algo", ["mg2l", "mappo", "oracle"])
@pytest.mark.parametrize("env", loading.available("env"))
def test_every_choice_loads_and_round_trips(tmp_path, algo, env):
    config = parsed(f"--algo={algo}", f"--env={env}", "clip_param=0.25", "hidden_sizes_mlp=[8, 4]")
    assert config.algo_name == algo
    path = tmp_path / "config.yaml"
    path.write_text(config_to_yaml(config))
    assert config_from_yaml(path) == config
    assert config_from_yaml(path) != parsed(f"--algo={algo}", f"--env={env}")


def test_shipped_files_load():
    for kind in loading.KINDS:
        for name in loading.available(kind):
            load_config(**{kind: name})


def test_round_trip_keeps_every_float(tmp_path):
    config = load_config(
        overrides={"lr": 0.1 + 0.2, "opti_eps": 1e-5, "huber_delta": 1e22, "seed": 2**31}
    )
    path = tmp_path / "config.yaml"
    path.write_text(config_to_yaml(config))
    assert flat(config_from_yaml(path)) == flat(config)


@pytest.mark.parametrize("kind", ["expt", "algo", "env"])
def test_keys_of_the_original_keep_their_names(write, kind):
    files = {name: write(f"{name}.yaml", text) for name, text in ORIGINAL.items()}
    config = load_config(**files)
    expected = yaml.safe_load("\n".join(line.strip() for line in ORIGINAL[kind].splitlines()))
    if kind == "env":
        expected.pop("family")
    for name, value in expected.items():
        value = float(value) if name in ("lr", "opti_eps", "actor_lr", "critic_lr",
                                         "weight_decay") else value  # fmt: skip
        if name == "use_feature_normalization":  # is called otherwise now
            name, value = "observation_normalization", "layer" if value else "none"
        assert leaf(config, name) == value, name


def test_later_files_win(write):
    env = write("env.yaml", "family: mpe-spread\ngamma: 0.1\nclip_param: 0.1\nlr: 0.1\nseed: 1")
    algo = write("algo.yaml", "algo_name: focal\nclip_param: 0.2\nlr: 0.2\nseed: 2")
    expt = write("expt.yaml", "lr: 0.3\nseed: 3")
    config = parsed(f"--env={env}", f"--algo={algo}", f"--expt={expt}", "seed=4")
    assert config.ppo.gamma == 0.1
    assert config.ppo.clip_param == 0.2
    assert leaf(config, "lr") == 0.3
    assert config.seed == 4
    assert cli.parse([f"--env={env}", f"--algo={algo}"])[1].env == "env"


def test_leaf_dotted_and_nested_names_are_one_key(write):
    nested = write("nested.yaml", "{ppo: {clip_param: 0.3}, env: {n_landmarks: 4}}")
    dotted = write("dotted.yaml", "ppo.clip_param: 0.3\nenv.n_landmarks: 4")
    first = parsed("clip_param=0.3", "n_landmarks=4", f"--expt={write('none.yaml', '')}")
    assert first.ppo.clip_param == 0.3
    assert first.env.n_landmarks == 4
    for path in (nested, dotted):
        assert parsed(f"--expt={path}") == first
    assert load_config(overrides={"ppo": {"clip_param": 0.3}}).ppo.clip_param == 0.3


@pytest.mark.parametrize(
    ("text", "value"),
    [("lr=5e-4", 5e-4), ("lr=1", 1.0), ("lr=+.5", 0.5), ("lr=1E-3", 1e-3), ("lr=1.e-3", 1e-3)],
)
def test_numbers(text, value):
    found = leaf(parsed(text), "lr")
    assert found == value
    assert type(found) is float


@pytest.mark.parametrize(
    "text", ["main_save_path=12", "main_save_path=null", "main_save_path=a: ["]
)
def test_texts_are_taken_as_they_stand(text):
    assert parsed(text).main_save_path == text.partition("=")[2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("n_iters=1.5", "n_iters must be an integer, got 1.5"),
        ("n_iters=1e3", "n_iters must be an integer, got 1000.0"),
        ("n_iters=010", "n_iters must be an integer, got '010'"),
        ("n_iters=1:30", "n_iters must be an integer, got '1:30'"),
        ("n_iters=true", "n_iters must be an integer, got True"),
        ("n_iters=", "n_iters must be an integer, got None"),
        ("lr=fast", "lr must be a number, got 'fast'"),
        ("lr=.inf", "lr must be finite, got inf"),
        ("lr=.nan", "lr must be finite, got nan"),
        ("use_gae=1", "use_gae must be true or false, got 1"),
        ("use_gae=yes", "use_gae must be true or false, got 'yes'"),
        ("use_gae=on", "use_gae must be true or false, got 'on'"),
        ("hidden_sizes_mlp=64", "hidden_sizes_mlp must be a list of integers such as [64, 64]"),
        ("hidden_sizes_mlp=[64, 1.5]", "hidden_sizes_mlp must be a list of integers"),
        ("hidden_sizes_mlp=[64, 0]", "hidden_sizes_mlp must be in [1, 8192], got [64, 0]"),
        ("clip_param=1", "clip_param must be in (0, 1), got 1"),
        ("env.n_agents=0", "n_agents must be in [1, 1000], got 0"),
        ("gpu_id=-2", "gpu_id must be in [-1, 1023], got -2"),
        ("aggregator=pai", "aggregator must be one of pia, transformer"),
        ("clip_parm=0.3", "unknown key 'clip_parm'; did you mean 'clip_param'?"),
        ("ppo.clip_parm=0.3", "unknown key 'ppo.clip_parm'; did you mean 'ppo.clip_param'?"),
        ("pp.clip_param=0.3", "unknown key 'pp.clip_param'; did you mean 'ppo.clip_param'?"),
        ("encoder.clip_param=0.3", "does not belong to 'algo'; did you mean 'ppo.clip_param'?"),
        ("xyzzy=1", "unknown key 'xyzzy'; --help lists all keys"),
        ("n_prey=2", "'n_prey' is a key of env family mpe-bounty, mpe-hunting, not of"),
        ("env.family=mpe-hunting", "chosen by --env"),
        ("ppo=3", "ppo is a group of keys"),
        ("seed", "expected key=value, got 'seed'"),
        ("--clip_param=0.3", "unknown option '--clip_param=0.3'"),
        ("--seed=3", "did you mean 'seed=3'?"),
        ("--algorithm=mg2l", "did you mean '--algo'?"),
        ("--algo=mg3l", "unknown algo 'mg3l'; choose one of"),
        ("--env=mpe-spred", "did you mean 'mpe-spread'?"),
        ("--expt=nothing", "unknown expt 'nothing'; choose one of default"),
        ("--expt=nothing.yaml", "--expt=nothing.yaml: there is no such file"),
        ("--env=", "--env needs a value"),
        ("--resume-previous", "--resume-previous needs --resume=RUN"),
        ("--resume=nowhere", "--resume=nowhere: no run lies there"),
    ],
)
def test_refusals(capsys, override, message):
    assert message in refusal(capsys, override)


@pytest.mark.parametrize(
    ("argv", "both"),
    [
        (["use_popart=true", "use_valuenorm=true"], ["use_popart=true", "use_valuenorm=true"]),
        (["seed=1", "seed=2"], ["1", "2", "seed"]),
        (["ppo.gamma=0.5", "gamma=0.6"], ["0.5", "0.6", "ppo.gamma"]),
        (["--env=mpe-spread", "--env=mpe-prey"], ["mpe-spread", "mpe-prey"]),
        (["--algo=mappo", "algo_name=mg2l"], ["--algo=mappo", "algo_name=mg2l"]),
        (["n_blocks=1", "n_heads=5", "context_dim=64"], ["n_heads=5", "context_dim=64"]),
        (["load_model=true"], ["load_model=true", "load_model_path"]),
        (["load_model=true", "load_model_path=nowhere"], ["load_model_path=nowhere"]),
        (["num_mini_batch=5000"], ["num_mini_batch=5000", "3200"]),
        (["ae_buffer_size=50"], ["ae_buffer_size=50", "max_ep_len=100"]),
        (["max_ep_len=100001"], ["ae_buffer_size=100000", "max_ep_len=100001"]),
        (["--algo=corro", "update_transitions=1"], ["corro", "update_transitions", "got 1"]),
        (["--algo=rl2", "use_naive_recurrent_policy=false"], ["rl2", "use_recurrent_policy=true"]),
        (
            ["--algo=varibad", "kept_trajectories=8", "update_trajectories=9"],
            ["kept_trajectories=8", "update_trajectories=9"],
        ),
        (
            ["n_rollout_threads=65536", "max_ep_len=100000"],
            ["n_rollout_threads=65536 x max_ep_len=100000", "6553600000 steps at once"],
        ),
        (["n_ae_rollout_threads=65536", "max_ep_len=9999"], ["n_ae_rollout_threads=65536"]),
        (["ae_batch_size=1000000", "n_rollout_threads=128"], ["ae_batch_size=1000000"]),
        (["update_contexts=1000000", "update_transitions=101"], ["update_contexts=1000000"]),
        (["--algo=mate-ind", "kept_trajectories=1000000", "max_ep_len=101"], ["kept_traj"]),
        (["eval_shots=[]"], ["eval_shots", "[]"]),
        (["main_save_path="], ["main_save_path", "''"]),
        (["--env=magent-battle", "n_opponents=999"], ["map_size=20", "n_opponents=999"]),
        (["--env=magent-gather", "food_per_kind=999"], ["n_foods=3 x food_per_kind=999"]),
    ],
)
def test_conflicts_name_both_values(capsys, argv, both):
    err = refusal(capsys, *argv)
    assert all(part in err for part in both), err


def test_what_an_algorithm_does_not_use_is_no_conflict(capsys, write):
    plain = parsed("--algo=mappo")
    assert parsed("--algo=mappo", "ae_buffer_size=50", "encoder.lr=0.1") == plain
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in said] == ["ae_buffer_size", "encoder.lr"]
    expt = write("expt.yaml", "n_heads: 2\nencoder: {distance_floor: 2.0}\nbelief_hidden: 8")
    assert parsed("--algo=mappo", f"--expt={expt}").algo == plain.algo
    assert "ae_buffer_size must be in" in refusal(capsys, "--algo=mappo", "ae_buffer_size=0")


def test_a_key_that_another_algorithm_alone_has_is_refused(capsys, write):
    err = refusal(capsys, "--algo=mappo", "distance_floor=2.0")
    assert "'distance_floor' is a key of algorithm focal, not of mappo" in err
    path = write("mine.yaml", "algo_name: rl2\nuse_recurrent_policy: true\nelbo_terms: 3")
    assert "'elbo_terms' is a key of algorithm varibad, not of rl2" in refusal(
        capsys, f"--algo={path}"
    )


def test_older_names_are_aliases(write):
    path = write(
        "old.yaml",
        """
        algo_name: mg2l
        encoder: {told_actors: global, obs: mlp, kl_weight: 0.3}
        told_critics: global
        """,
    )
    config = parsed(f"--algo={path}", "encoder.told_critics=global", "encoder.context_dim=32")
    values = flat(config)
    assert values["algo.actor_latent"] == values["algo.critic_latent"] == "global"
    assert (values["algo.kl_weight"], values["algo.context_dim"]) == (0.3, 32)
    assert leaf(parsed("--algo=mate-ind", "belief.belief_hidden=8"), "belief_hidden") == 8


def test_the_config_of_an_older_run_loads(tmp_path):
    """Written when every run had the groups ``encoder`` and ``belief`` with keys of all."""
    config = load_config(algo="focal", overrides={"distance_floor": 0.5, "lr": 0.25})
    now = yaml.safe_load(config_to_yaml(config))
    foreign = {"mate_encoding": "own", "belief_hidden": 64, "elbo_terms": 10}
    old = {key: value for key, value in now.items() if key != "algo"}
    old["policy"].pop("obs")
    old["encoder"] = {**now["algo"], "obs": "mlp", "aggregator": "pia", "told_actors": "local"}
    old["belief"] = foreign
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(old))
    assert config_from_yaml(path) == config
    then = flat(config) | {f"encoder.{name}": value for name, value in old["encoder"].items()}
    then = {path: value for path, value in then.items() if not path.startswith("algo.")}
    then |= {f"belief.{name}": value for name, value in foreign.items()}
    assert upgrade(then) == flat(config)


def test_the_same_value_twice_is_no_conflict():
    assert parsed("seed=1", "seed=1").seed == 1
    assert parsed("--algo=mappo", "algo_name=mappo").algo_name == "mappo"


@pytest.mark.parametrize("key", sorted(RETIRED))
def test_retired_keys_say_why(capsys, write, key):
    assert f"key '{key}' of the original code has no meaning here: " in refusal(capsys, f"{key}=1")
    path = write("mine.yaml", f"{key}: 1")
    err = refusal(capsys, f"--expt={path}")
    assert path in err
    assert "no meaning here" in err


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("algo", "clip_parm: 0.3", "unknown key 'clip_parm'; did you mean 'clip_param'?"),
        ("algo", "ppo: {clip_parm: 0.3}", "unknown key 'ppo.clip_parm'"),
        ("algo", "ppo: {kl_weight: 0.3}", "did you mean 'algo.kl_weight'?"),
        ("algo", "ppo: 3", "ppo is a group of keys, got 3"),
        ("algo", "clip_param: 3", "clip_param must be in (0, 1), got 3"),
        ("algo", "clip_param: 0.3\nclip_param: 0.2", "'clip_param' occurs twice"),
        ("algo", "clip_param: 0.3\nppo: {clip_param: 0.2}", "given twice: 0.3 and 0.2"),
        ("algo", "clip_param: 0.3\n  - x: [", "line 2"),
        ("algo", "- 3", "must hold 'key: value' lines, got a list"),
        ("algo", "when: !!python/object:os.system x", "not valid YAML"),
        ("algo", "family: mpe-spread", "chosen by --env"),
        ("env", "n_agents: 3", "must begin with 'family: NAME'"),
        ("env", "family: mpe-spred", "did you mean 'mpe-spread'?"),
        (
            "env",
            "family: mpe-spread\nn_prey: 3",
            "'n_prey' is a key of env family mpe-bounty, mpe-",
        ),
    ],
)
def test_files_are_refused_by_name(capsys, write, kind, text, message):
    path = write("mine.yaml", text)
    err = refusal(capsys, f"--{kind}={path}")
    assert message in err
    assert err.count(path) == 1


def test_a_file_that_cannot_be_decoded(capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"seed: \xff\xfe")
    assert str(path) in refusal(capsys, f"--expt={path}")


def test_an_env_of_ones_own(write):
    path = write("mine.yaml", "family: mpe-hunting\nn_prey: 3\nn_agents: 4\nn_tasks: 2")
    config, options = cli.parse([f"--env={path}"])
    assert options.env == "mine"
    family: Any = registry.config_class("mpe-hunting")
    assert config.env == family(n_agents=4, n_prey=3, n_tasks=2)


def test_refusals_leave_nothing_behind(capsys, tmp_path):
    refusal(capsys, f"main_save_path={tmp_path / 'runs'}", "clip_param=7")
    assert list(tmp_path.iterdir()) == []
