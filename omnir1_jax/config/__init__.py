"""Settings: their defaults, flags, and configs that runs have saved."""
