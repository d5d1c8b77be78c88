"""The paper's inference over whole videos: System 1 plans, System 2 grounds, SAM 2 tracks through every frame."""
