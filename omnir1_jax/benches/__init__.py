"""One benchmark per module; each has `run(quick: bool) -> dict` and measures both sides in one process."""
