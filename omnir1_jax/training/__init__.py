"""Training: the loop over steps, checkpoints and the outputs of a run."""
