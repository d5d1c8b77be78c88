"""The two systems: a global reasoner that plans, and a detail system that grounds and segments."""
