"""The one error a user can cause."""


class InputError(ValueError):
    """Bad input: the message is one clear line that names the file, key or dimension and what to do.

    Commands print it without a traceback and exit with status 2 (`omnir1_jax.cli`).
    """
