"""Training loops of others, raced against ours: ``python -m benchmarks.peers.race``.

Every contestant does one iteration of MAPPO: 2 agents in 32 environments for 100 steps, 15 epochs.
``ours`` is ``mg2l`` as it is trained; ``torch_mappo`` the shortest loop in plain PyTorch, on the
same environment; ``jax_mappo`` the same algorithm and world in pure JAX, compiled as a whole, with
the value normalisation, clipping per agent and checks of ours; ``benchmarl_mappo`` BenchMARL's on
VMAS's spread. The extra ``peers`` has JAX; BenchMARL needs an environment of its own.
"""
