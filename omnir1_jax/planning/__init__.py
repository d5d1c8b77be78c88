"""What a step costs before it is run: operations, bytes and memory, read from the compiled program."""
