"""The schema of a run: what every key means, its type, default and bounds.

The keys of an environment family and of an algorithm stand with these, in classes of their own.
YAML files under ``configs/`` hold values only; ``mg2l.config.files`` reads them.
Leaf names are unique over all groups, so ``clip_param=0.3`` and ``ppo.clip_param=0.3`` are the
same override.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mg2l.config.algorithms import AlgorithmConfig, algorithms
from mg2l.core.distributed import world
from mg2l.core.schema import Section, bounded, check_steps
from mg2l.envs.base import EnvConfig


@dataclass
class RolloutConfig(Section):
    """How experience is collected."""

    n_rollout_threads: int = bounded(32, ge=1, le=65_536)
    """Sub-environments stepped together; each draws its own task for every iteration."""

    rollout_threads_divisor: int = bounded(1, ge=1, le=1000)
    """Divides ``n_rollout_threads``, rounded down to 1 or more: with 2, and ``episodes_per_task:
    2``, half as many for twice as long take as many steps in an iteration as the environment
    says."""

    n_ae_rollout_threads: int = bounded(4, ge=1, le=65_536)
    """Sub-environments of an exploration rollout, whose transitions fill the context replay."""

    paired_exploration: bool = True
    """Explore in groups of one episode per task with one seed and one draw from the prior, so that
    their episodes differ only by the tasks. Otherwise an encoder can memorise which starting
    positions it has seen with which task."""

    n_init_rollouts: int = bounded(5, ge=1, le=1_000_000)
    """Exploration rollouts before the first iteration."""

    sample_ae_interval: int = bounded(5, ge=1)
    """Iterations between two exploration rollouts."""

    env_actors: int = bounded(0, ge=0, le=4096)
    """Ray actors that host the sub-environments, a part each, for environments that are slow to
    step; 0 hosts them here. Results are the same. The cluster is the one that this machine belongs
    to, or that the environment variable ``RAY_ADDRESS`` names."""

    episodes_per_task: int = bounded(1, ge=1, le=1000)
    """Episodes of one task, one after the other, in a rollout: with more than one, memory of
    the first helps in the others. The number of steps grows accordingly."""

    context_refresh: Literal["step", "episode"] = "step"
    """When each agent draws a fresh context and infers its representation again."""

    act_on: Literal["mean", "sample"] = "mean"
    """Latent of an actor with an inferred Gaussian: its mean, or a sample."""


@dataclass
class PPOConfig(Section):
    """Multi-agent proximal policy optimisation (Yu et al., 2022, arXiv:2103.01955)."""

    ppo_epoch: int = bounded(15, ge=1, le=10_000)
    """Passes over a rollout."""

    num_mini_batch: int = bounded(1, ge=1)
    """Parts into which a pass is split, one gradient step each."""

    clip_param: float = bounded(0.2, gt=0, lt=1)
    """Half-width of the trust interval around a probability ratio of 1."""

    entropy_coef: float = bounded(0.01, ge=0)
    """Weight of the entropy bonus."""

    value_loss_coef: float = bounded(1.0, gt=0)
    """Weight of the value loss."""

    gamma: float = bounded(0.99, ge=0, le=1)
    """Discount of a reward one step later."""

    trial_gamma: float = bounded(0.0, ge=0, le=1)
    """Discount that takes the place of ``gamma`` where an action is credited with what it earns in
    later episodes of its task, too: advantages and the values they bootstrap from run through ends
    of episodes, to the end of the rollout, which is one task's. 0 ends them with every episode."""

    gae_lambda: float = bounded(0.95, ge=0, le=1)
    """Decay of generalised advantage estimation (Schulman et al., 2016, arXiv:1506.02438)."""

    use_gae: bool = True
    """Estimate advantages with GAE; false uses discounted returns (``gae_lambda`` 1)."""

    use_proper_time_limits: bool = True
    """Bootstrap through a time limit; false treats it as the end of the task."""

    use_huber_loss: bool = True
    """Huber value loss; false is the squared error."""

    huber_delta: float = bounded(10.0, gt=0)
    """Error at which the Huber loss turns from quadratic to linear, in normalised values."""

    use_clipped_value_loss: bool = True
    """Clip the change of a value prediction at ``clip_param``, in normalised values."""

    use_value_active_masks: bool = True
    """Leave agents that are no longer alive out of the value loss."""

    use_policy_active_masks: bool = True
    """Leave agents that are no longer alive out of the policy loss."""

    use_valuenorm: bool = True
    """Normalise value targets with running moments."""

    use_popart: bool = False
    """Normalise value targets and rescale the output layer so that predictions are preserved
    (van Hasselt et al., 2016, arXiv:1602.07714). Excludes ``use_valuenorm``."""

    use_max_grad_norm: bool = True
    """Clip gradient norms."""

    max_grad_norm: float = bounded(10.0, gt=0)
    """Largest gradient norm of one agent's network, and of the encoder."""

    actor_lr: float = bounded(5e-4, gt=0)
    """Learning rate of the actors."""

    critic_lr: float = bounded(5e-4, gt=0)
    """Learning rate of the critics."""

    opti_eps: float = bounded(1e-5, gt=0)
    """Epsilon of Adam."""

    weight_decay: float = bounded(0.0, ge=0)
    """L2 penalty of Adam."""

    use_linear_lr_decay: bool = True
    """Decay every learning rate linearly to 5 % of its start over the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_popart and self.use_valuenorm:
            raise ValueError(
                "use_popart=true and use_valuenorm=true exclude each other; set one to false"
            )


@dataclass
class PolicyConfig(Section):
    """Actor and critic networks."""

    share_policy: bool = False
    """One network for all agents (policies are given the agent's index) instead of one each, in
    policies, critics and local inference."""

    use_centralized_V: bool = True
    """The critic sees the observations of all agents; false: its own agent's only."""

    critic: Literal["joint", "pooled"] = "joint"
    """How a centralised critic reads the observations of all agents: side by side, by a first layer
    for each agent, whose cost is quadratic in agents; or each encoded, and pooled by attention,
    with one value where all agents get the same reward, whose cost is linear."""

    algo_hidden_size: int = bounded(256, ge=1, le=8192)
    """Width of the hidden layers."""

    obs: Literal["mlp", "cnn"] = "mlp"
    """How observations are read that begin with an image: as flat numbers, or through two
    convolutions in actors, critics and the encoders of single transitions (of ``mg2l``,
    ``ma-pearl`` and ``focal``)."""

    layer_N: int = bounded(1, ge=0, le=1000)
    """Hidden layers after the first."""

    use_ReLU: bool = True
    """ReLU between layers; false is tanh."""

    observation_normalization: Literal["running", "layer", "none"] = "running"
    """Normalisation of an observation before the first layer: each number is standardised by the
    running moments of all that its agent has acted on; LayerNorm over its numbers, of which there
    must be 3 or more; or nothing."""

    observation_clip: float = bounded(10.0, gt=0, le=1e6)
    """Standard deviations from the mean at which a number of an observation is clipped, with
    ``observation_normalization: running``."""

    use_orthogonal: bool = True
    """Orthogonal initialisation; false is Xavier uniform."""

    gain: float = bounded(0.01, gt=0, le=1e6)
    """Gain of the actors' output layer at initialisation."""

    use_recurrent_policy: bool = False
    """A GRU in actor and critic, trained on chunks of ``data_chunk_length`` steps."""

    use_naive_recurrent_policy: bool = False
    """A GRU in actor and critic, trained on whole rollouts."""

    recurrent_N: int = bounded(1, ge=1, le=100)
    """Layers of the GRU."""

    recurrent_reset: Literal["episode", "task"] = "episode"
    """When the GRU is reset: with every episode, or with every rollout, which is one task's."""

    conditioning: Literal["input", "film", "hyper"] = "input"
    """How a latent enters actors and critics: beside the observation; FiLM, which scales and shifts
    their last hidden features; or a hypernetwork, which makes the weights of their output layer.
    With memory, what is remembered takes the latent's place; without either there is nothing to
    condition on."""

    hyper_dim: int = bounded(16, ge=1, le=1024)
    """Width of the embedding in which those weights are linear, with ``conditioning: hyper``."""

    data_chunk_length: int = bounded(10, ge=1)
    """Steps through which a recurrent policy is trained back in time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_recurrent_policy and self.use_naive_recurrent_policy:
            raise ValueError(
                "use_recurrent_policy=true and use_naive_recurrent_policy=true exclude each other; "
                "set one to false"
            )

        if self.critic == "pooled" and not self.use_centralized_V:
            raise ValueError(
                "critic=pooled reads the observations of all agents, and use_centralized_V=false "
                "excludes it; set it to true"
            )

    @property
    def use_feature_normalization(self) -> bool:
        """The original's name of ``observation_normalization: layer``."""
        return self.observation_normalization == "layer"


@dataclass
class Config(Section):
    """One training run."""

    algo_name: str = "mg2l"
    """Algorithm: with ``mappo`` actors and critics know nothing about the task, with ``oracle``
    they are given it, with the others they infer it."""

    seed: int = bounded(0, ge=0, le=2**32 - 1)
    """Seed of everything random."""

    gpu_id: int = bounded(0, ge=-1, le=1023)
    """CUDA device; -1 is the CPU, as is any number on a machine without a GPU."""

    n_training_threads: int = bounded(0, ge=0, le=1024)
    """CPU threads of torch; 0 leaves torch's own choice."""

    kernels: Literal["auto", "native", "torch"] = "auto"
    """Compiled operators, or their definitions in plain torch: the same training, to float
    tolerance. With ``auto`` an operator that is not compiled for the device is computed in plain
    torch; with ``native`` that is an error."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """What hidden layers multiply in training; bfloat16 is faster, on CPUs with ``avx512_bf16``."""

    n_iters: int = bounded(1000, ge=1, le=1_000_000_000)
    """Iterations of the run."""

    n_env_steps: int = bounded(0, ge=0, le=10**15)
    """Environment steps of the run, exploration counted, in place of ``n_iters``: the run ends with
    the iteration that reaches them; 0 leaves ``n_iters`` in force."""

    log_interval: int = bounded(1, ge=1)
    """Iterations between two lines of progress; metrics are written for every iteration."""

    save_model: bool = True
    """Write checkpoints."""

    save_interval: int = bounded(50, ge=1)
    """Iterations between two checkpoints; the last iteration always has one."""

    eval_interval: int = bounded(0, ge=0)
    """Iterations between two meta-tests during training; 0 is never. They change nothing
    of the training."""

    eval_episodes: int = bounded(4, ge=1, le=100_000)
    """Episodes per task in such a meta-test."""

    eval_shots: list[int] = bounded([0, 1, 2], ge=0, le=1000)  # noqa: RUF009
    """Episodes of exploration before acting in such a meta-test."""

    keep_checkpoints: int = bounded(2, ge=1)
    """Latest checkpoints that stay on disk."""

    main_save_path: str = "runs"
    """Folder of all runs; this one lies in ``<env>/<algo>/<time>-sd<seed>`` below it."""

    log_wandb: bool = False
    """Also log to Weights & Biases (works offline)."""

    log_tensorboard: bool = True
    """Also write TensorBoard events."""

    log_csv: bool = False
    """Also write ``metrics.csv``, a column per number."""

    log_mlflow: bool = False
    """Also log to MLflow: at ``MLFLOW_TRACKING_URI``, or to ``mlflow.db`` in ``main_save_path``."""

    load_model: bool = False
    """Start from the networks of the checkpoint at ``load_model_path``."""

    load_model_path: str = ""
    """Checkpoint, or run folder, whose networks ``load_model`` takes."""

    env: EnvConfig = field(default_factory=EnvConfig)
    """The environment family's own keys."""

    algo: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    """The algorithm's own keys: an instance of its ``config_class``."""

    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.load_model and not self.load_model_path:
            raise ValueError("load_model=true needs load_model_path, got an empty path")
        if not self.main_save_path:
            raise ValueError("main_save_path must name a folder, got ''")
        if not self.eval_shots:
            raise ValueError("eval_shots must have at least one number of episodes, got []")
        own = algorithms.get(self.algo_name).config_class
        if type(self.algo) is AlgorithmConfig:
            self.algo = own()
        if type(self.algo) is not own:
            raise ValueError(
                f"algo_name={self.algo_name} needs an algo of {own.__name__}, "
                f"got one of {type(self.algo).__name__}"
            )
        self.algo.check_config(self)
        rollout, length = self.rollout, self.env.max_ep_len
        check_steps(
            n_rollout_threads=rollout.n_rollout_threads,
            max_ep_len=length,
            episodes_per_task=rollout.episodes_per_task,
        )
        envs, steps = self.rollout_envs, self.rollout_steps
        world.check_divides(**{self._rollout_envs_shown: envs})
        if self.policy.use_recurrent_policy and steps % self.policy.data_chunk_length:
            raise ValueError(
                f"data_chunk_length={self.policy.data_chunk_length} must divide "
                f"{self._rollout_steps_shown}={steps}"
            )
        rows, unit = envs * steps, "steps"
        if self.policy.use_naive_recurrent_policy:
            rows, unit = envs, "sequences"
        elif self.policy.use_recurrent_policy:
            rows, unit = rows // self.policy.data_chunk_length, "chunks"
        if self.ppo.num_mini_batch > rows:
            raise ValueError(
                f"num_mini_batch={self.ppo.num_mini_batch} exceeds the rollout's {rows} {unit} "
                f"({self._rollout_envs_shown}={envs} x {self._rollout_steps_shown}={steps})"
            )

    @property
    def rollout_envs(self) -> int:
        """N: sub-environments of a rollout."""
        return max(1, self.rollout.n_rollout_threads // self.rollout.rollout_threads_divisor)

    @property
    def _rollout_envs_shown(self) -> str:
        divided = self.rollout.rollout_threads_divisor > 1
        return "n_rollout_threads / rollout_threads_divisor" if divided else "n_rollout_threads"

    @property
    def rollout_steps(self) -> int:
        """T: steps of a rollout."""
        return self.env.max_ep_len * self.rollout.episodes_per_task

    @property
    def _rollout_steps_shown(self) -> str:
        many = self.rollout.episodes_per_task > 1
        return "max_ep_len x episodes_per_task" if many else "max_ep_len"
