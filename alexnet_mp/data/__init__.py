"""From pictures on a disk to batches on the towers' devices (paper 2, 4.1)."""
