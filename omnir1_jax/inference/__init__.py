"""The paper's inference over whole videos: System 1 plans, System 2 finds, SAM 2 follows through every frame."""
