"""Models: the Qwen2.5-Omni thinker and SAM 2.1."""
