"""MG2L: meta multi-agent reinforcement learning by global and local task inference.

Importing this package loads the compiled operators into ``torch.ops.mg2l``.
"""
from pathlib import Path
import torch
torch.ops.load_library(str(Path(__file__).with_name("_C.abi3.so")))
