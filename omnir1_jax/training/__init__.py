"""Training: the loop over steps, and what a run leaves at its end."""
