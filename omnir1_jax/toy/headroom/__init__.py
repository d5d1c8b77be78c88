"""What a synthetic world rewards, measured with oracles: `python -m omnir1_jax.toy.headroom`."""
