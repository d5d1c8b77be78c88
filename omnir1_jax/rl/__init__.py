"""Learning: rewards, advantages, losses."""
