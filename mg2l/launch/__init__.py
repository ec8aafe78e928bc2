"""Where jobs run: processes of this machine, tasks of a Ray cluster, or jobs of SLURM."""
