"""Keys of CORRO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mg2l.algorithms.config import ContextConfig
from mg2l.config.algorithms import register_algorithm
from mg2l.core.schema import ConfigError, bounded, check_steps

if TYPE_CHECKING:
    from mg2l.config.sections import Config


@dataclass
class CORROConfig(ContextConfig):
    """Transitions contrasted with generated ones of other tasks (Yuan & Lu, 2022)."""

    temperature: float = bounded(0.2, gt=0)
    """Divisor of the scores."""

    generated_negatives: int = bounded(16, ge=1, le=100_000)
    """Transitions of other tasks that are generated for each that is contrasted."""

    generator_lead: int = bounded(10, ge=0, le=1_000_000)
    """Updates of the generator alone for each of ``n_init_updates``, all of them before anything is
    contrasted with what it generates."""

    generator_dim: int = bounded(8, ge=1, le=8192)
    """Width of the generator's latent variable, which stands for the task."""

    def check_config(self, config: Config) -> None:
        super().check_config(config)
        if self.update_transitions < 2:  # one of a context is contrasted with another
            raise ConfigError(
                f"corro needs update_transitions of at least 2, got {self.update_transitions}"
            )
        check_steps(
            update_contexts=self.update_contexts,
            update_transitions=self.update_transitions,
            generated_negatives=self.generated_negatives,
        )


register_algorithm("corro", "mg2l.algorithms.corro.algorithm:CORRO", CORROConfig)
