"""The Qwen2.5-Omni thinker: towers, decoder, weights, sampling and scoring."""
