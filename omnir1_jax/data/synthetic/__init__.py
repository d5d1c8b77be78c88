"""A world made by a seed: shapes that move, grow, hide, come, go and sound, with exact masks and true expressions."""
