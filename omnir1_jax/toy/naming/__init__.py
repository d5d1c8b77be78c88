"""Which shape System 2 takes, by what names it: `python -m omnir1_jax.toy.naming`."""
