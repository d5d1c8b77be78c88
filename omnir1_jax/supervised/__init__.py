"""Training with the truth at hand: the thinker on target texts, SAM 2 on masks."""
