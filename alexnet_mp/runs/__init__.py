"""What a run leaves on the disk: its directory, metrics, checkpoints."""
