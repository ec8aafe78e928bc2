"""Losses of the task encoder. All information is in nats."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mg2l.algorithms.base import Encoding
from mg2l.algorithms.losses import info_nce, leave_one_out, pair_scores
from mg2l.algorithms.mg2l.config import MG2LConfig
from mg2l.algorithms.mg2l.encoder import RawEncoding, TaskEncoder
from mg2l.core.distributed import world
from mg2l.estimators.gaussian import STD_FLOOR, Gaussian, kl_between, kl_to_standard
from mg2l.experience.replay import Context
from mg2l.ops import reference
from mg2l.ops.backend import NATIVE, Backend
from mg2l.ops.results import Contrast


class Objective(nn.Module):
    """Global and local losses of the encoder.

    - Global: ``L_G = -I_NCE(z; task) + kl_weight KL(q(z|c) || N(0, I))``; without the first term
      where ``global_objective`` is ``none``.
    - Local: ``I_L1Out(z; c) - I_NCE(z^i; task)`` per agent, an upper bound on the conditional
      mutual information reduction, through ``z^i`` alone. The leave-one-out term has no gradient
      there, so only the second is in the loss; their difference is the metric ``mi/gap``.

    Args:
        config: which losses.
        tasks: K training tasks.
        encoder: the encoder to train.
        noise: source of samples, on the encoder's device.
        backend: operators to compute with.
        share: all agents have one local inference network.
    """

    def __init__(
        self,
        config: MG2LConfig,
        tasks: int,
        encoder: TaskEncoder,
        noise: torch.Generator,
        backend: Backend = NATIVE,
        share: bool = False,
    ) -> None:
        super().__init__()
        self.backend, self.share = backend, share
        self.config, self.tasks, self.encoder, self.noise = config, tasks, encoder, noise
        self.needs_keys = config.keys == "context" or config.local_objective == "mi"
        self.task_keys: nn.Parameter | None = None
        if config.keys == "task":
            self.task_keys = nn.Parameter(torch.randn(tasks, config.context_dim))
        self.bilinear: nn.Parameter | None = None
        if config.score == "bilinear":
            self.bilinear = nn.Parameter(torch.eye(config.context_dim))

    def key_tasks(self, tasks: Tensor) -> Tensor:
        """Tasks of the contexts that become keys, for queries of the tasks ``[B]``."""
        every = torch.arange(self.tasks, device=tasks.device)
        return every if self.config.negatives == "shared" else every.repeat(len(tasks))

    def forward(
        self,
        queries: RawEncoding | Context | Tensor,
        tasks: Tensor,
        keys: Context | Tensor | None,
        key_encoder: TaskEncoder,
        measure_gap: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics.

        Args:
            queries: contexts ``[B, T, A, F]``, or what the encoder makes of them.
            tasks: ``[B]`` int64.
            keys: contexts of `key_tasks`, this process's part of them where queries share them; or
                None when keys are not encoded.
            key_encoder: encodes the keys; when it is the trained encoder, gradients flow too.
            measure_gap: also the leave-one-out bound and the gap, from B x B densities that no loss
                needs.
        """
        config = self.config
        if self._at_once:
            raw = queries if isinstance(queries, RawEncoding) else self.encoder.raw(queries)
            return self._contrast(raw, tasks.to(raw.task.device), measure_gap)
        if isinstance(queries, RawEncoding):
            query = self.encoder.gaussians(queries)
        else:
            query = self.encoder(queries)
        key: Encoding | None = None
        if keys is not None:
            with torch.set_grad_enabled(key_encoder is self.encoder):
                key = key_encoder(keys)
            if not self.own_keys:
                key = self._gathered(key)
        positive = tasks.to(query.task.mean.device)
        z = self._pick(query.task)
        metrics: dict[str, Tensor] = {}
        loss = z.new_zeros(())
        if config.global_objective == "mi":
            bound = info_nce(self._scores(z, self._global_keys(key)), positive)
            loss = -bound.bound
            metrics |= {"mi/global": bound.bound, "accuracy/global": bound.accuracy}
        kl = kl_to_standard(self._for_kl(query.task)).mean()
        loss = loss + config.kl_weight * kl
        metrics |= {"loss/global": loss, "kl/global": kl}
        local, local_metrics = self.local_losses(query, key, z.detach(), positive)
        metrics |= local_metrics
        if measure_gap and config.dist == "gaussian":
            metrics |= self._gap(query.task, local_metrics.get("mi/local"))
        return loss + local, metrics

    @property
    def _at_once(self) -> bool:
        """Whether one operator computes all losses: by default it does."""
        config = self.config
        chosen = {
            "keys": "task",
            "contrast": "mean",
            "score": "cosine",
            "dist": "gaussian",
            "bounded_by": "sphere",
            "global_objective": "mi",
            "local_objective": "conditional_mi",
            "local_query": "own",
        }
        return all(getattr(config, key) == value for key, value in chosen.items())

    @property
    def has_vjp(self) -> bool:
        """Whether there is a `vjp`: the operator for all losses is compiled."""
        return self._at_once and self.backend.contrast is not reference.contrast

    def vjp(
        self, raw: RawEncoding, tasks: Tensor, measure_gap: bool, scale: float
    ) -> tuple[Tensor, dict[str, Tensor], RawEncoding]:
        """`forward`, and the gradient of ``scale`` times the loss; see `mg2l.nn.vjp`.

        Returns:
            Loss, metrics and the gradient of the encoding; that of the keys is in their ``grad``.
        """
        from mg2l.ops.contrast import contrast_vjp  # of the operator, if it is compiled

        assert self.task_keys is not None
        keys, positive = self.task_keys, tasks.to(raw.task.device)
        options = self._options
        task, to_task, to_keys = contrast_vjp(raw.task.unsqueeze(0), keys, positive, **options)
        local, to_local, _ = contrast_vjp(raw.local, keys, positive, **options)
        keys.grad = to_keys[0].mul_(scale)
        own_scale = scale / len(raw.local) if self.share else scale
        slopes = RawEncoding(to_task[0].mul_(scale), to_local.mul_(own_scale))
        return *self._summed(raw, task, local, measure_gap), slopes

    @property
    def _options(self) -> dict[str, float]:
        return {
            "temperature": self.config.temperature,
            "kl_weight": self.config.kl_weight,
            "std_floor": STD_FLOOR,
        }

    def _contrast(
        self, raw: RawEncoding, positive: Tensor, measure_gap: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What `forward` returns, by the operator `contrast`."""
        assert self.task_keys is not None
        contrast, keys = self.backend.contrast, self.task_keys
        task = contrast(raw.task.unsqueeze(0), keys, positive, **self._options)
        local = contrast(raw.local, keys.detach(), positive, **self._options)
        return self._summed(raw, task, local, measure_gap)

    def _summed(
        self, raw: RawEncoding, task: Contrast, local: Contrast, measure_gap: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics, given those of the global and the local representations."""
        own = local.loss.mean() if self.share else local.loss.sum()
        metrics = {
            "mi/global": task.bound[0],
            "accuracy/global": task.accuracy[0],
            "loss/global": task.loss[0],
            "kl/global": task.kl[0],
            "mi/local": local.bound.mean(),
            "accuracy/local": local.accuracy.mean(),
            "loss/local": own,
        }
        if measure_gap:
            metrics |= self._gap(self.encoder.gaussians(raw).task, metrics["mi/local"])
        return task.loss[0] + own, metrics

    @torch.no_grad()
    def _gap(self, task: Gaussian, local: Tensor | None) -> dict[str, Tensor]:
        """The leave-one-out bound of more than one context, and how far the local one is below."""
        if len(task.mean) < 2:
            return {}
        upper = leave_one_out(task, task.sample(self.noise), self.backend)
        return {"mi/l1out": upper} | ({} if local is None else {"mi/gap": upper - local})

    def local_losses(
        self, query: Encoding, key: Encoding | None, z: Tensor, positive: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The agents' losses; gradients reach the local heads only.

        They are summed, so that each trains a network of its own as if it were alone, but averaged
        where all train one.
        """
        config = self.config
        if "none" == config.local_objective == config.global_objective:
            nothing = z.new_zeros(())  # also trains keys, whose scores would mean nothing
            return nothing, {"loss/local": nothing}
        total = torch.mean if self.share else torch.sum
        own = self._pick(query.local).transpose(0, 1)
        with torch.set_grad_enabled(config.local_objective in ("conditional_mi", "mi")):
            scores = self._scores(own, self._local_keys(key), train_score=False)
            if config.local_objective == "conditional_mi" and config.local_query == "joint":
                # Scores of a concatenation: the sum of its parts' scores.
                scores = scores + self._scores(z, self._global_keys(key)).detach()
            bound = info_nce(scores, positive)
        metrics = {"mi/local": bound.bound.mean(), "accuracy/local": bound.accuracy.mean()}
        if config.local_objective == "none":
            loss = z.new_zeros(())
        elif config.local_objective == "kl":
            task = self._for_kl(query.task)
            target = Gaussian(task.mean.detach().unsqueeze(1), task.std.detach().unsqueeze(1))
            loss = total(kl_between(self._for_kl(query.local), target).mean(0))
        else:
            kl = total(kl_to_standard(self._for_kl(query.local)).mean(0))
            loss = config.kl_weight * kl - total(bound.bound)
        metrics["loss/local"] = loss
        return loss, metrics

    def _pick(self, q: Gaussian) -> Tensor:
        return q.sample(self.noise) if self.config.contrast == "sample" else q.mean

    def _pick_key(self, q: Gaussian) -> Tensor:
        if self.own_keys:
            return self._pick(q)
        with world.local():  # all processes have the same
            return self._pick(q)

    def _for_kl(self, q: Gaussian) -> Gaussian:
        """The Gaussian of the KL terms: ``N(point, I)`` for a point, as they would be infinite."""
        return Gaussian(q.mean, torch.ones_like(q.std)) if self.config.dist != "gaussian" else q

    def _global_keys(self, key: Encoding | None) -> Tensor:
        if self.config.keys == "task":
            assert self.task_keys is not None
            return self.encoder.project(self.task_keys)
        assert key is not None
        return self._arranged(self._pick_key(key.task))

    def _local_keys(self, key: Encoding | None) -> Tensor:
        """Keys of the agents' own representations, detached where these should not train them."""
        if self.config.local_objective == "mi":
            assert key is not None
            return self._arranged(self._pick_key(key.task)).detach()
        if self.config.keys == "task":
            keys = self._global_keys(key)
            return keys.detach() if self.config.global_objective == "mi" else keys
        assert key is not None
        return self._arranged(self._pick_key(key.local).transpose(0, 1))

    def _gathered(self, keys: Encoding) -> Encoding:
        """Keys that all queries share, encoded by all processes; a single message."""
        if world.size == 1:
            return keys
        parts = [*keys.task, *(x.flatten(1) for x in keys.local)]
        rows = world.gather(torch.cat(parts, -1), count=self.tasks)
        task_mean, task_std, *local = rows.split([x.shape[1] for x in parts], -1)
        mean, std = (x.unflatten(1, keys.local.mean.shape[1:]) for x in local)
        return Encoding(Gaussian(task_mean, task_std), Gaussian(mean, std))

    @property
    def own_keys(self) -> bool:
        """Whether every query has keys of its own."""
        return self.needs_keys and self.config.negatives == "independent"

    def _arranged(self, keys: Tensor) -> Tensor:
        """Shared keys ``[*, K, D]``, or each query's own ``[*, B, K, D]``."""
        return keys.unflatten(-2, (-1, self.tasks)) if self.own_keys else keys

    def _scores(self, queries: Tensor, keys: Tensor, train_score: bool = True) -> Tensor:
        """Scores; the form of a bilinear one is learned by the global loss alone."""
        config = self.config
        bilinear: Tensor | None = self.bilinear
        if bilinear is not None and not train_score:
            bilinear = bilinear.detach()
        own_keys = keys.dim() > 2 and self.own_keys
        return pair_scores(queries, keys, config.score, config.temperature, bilinear, own_keys)
