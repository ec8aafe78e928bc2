"""The worker process of ``mg2l.envs.adapters``, which runs sub-environments of another package.

It imports NumPy and what the environment's factory needs: no torch, no mg2l.
"""

from .spaces import flat as flat
from .spaces import width as width
