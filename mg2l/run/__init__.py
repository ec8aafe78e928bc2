"""What a run leaves behind and how it is watched: folder, metrics, progress, checkpoints."""
