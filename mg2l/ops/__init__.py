"""Operators on tensors, compiled for CPU and CUDA.

Each is one public function here, one name in ``torch.ops.mg2l`` and one definition in plain torch
in :mod:`mg2l.ops.reference`.
"""

from mg2l.ops.encode_context import encode_context
from mg2l.ops.gae import GAE, gae
from mg2l.ops.results import EncodedContext

NAMES = ("gae", "encode_context")
"""Every operator, as it is called here and in the dispatcher."""

__all__ = ["GAE", "NAMES", "EncodedContext", "encode_context", "gae"]
