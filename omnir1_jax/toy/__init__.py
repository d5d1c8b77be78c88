"""The toy: its tokenizer, the lessons that its weights come from, and `python -m omnir1_jax.toy`."""
