"""Supervised training: the thinker on target texts, SAM 2 on masks."""
