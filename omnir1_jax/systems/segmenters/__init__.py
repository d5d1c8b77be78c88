"""System 2's second half: boxes, or descriptions, to masks over a clip."""
