"""The costs of a step before it runs: operations, bytes and memory, read from the compiled program."""
