"""MG2L: meta multi-agent reinforcement learning by global and local task inference.

Importing this package loads the compiled operators into ``torch.ops.mg2l``, or says that it was
installed without.
"""

from mg2l import _native

__version__ = "0.1.0"

_native.load()

from mg2l import ops  # noqa: E402  (its registrations need the loaded operators)

__all__ = ["__version__", "ops"]
