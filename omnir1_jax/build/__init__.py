"""From a config to what a command works with: models, parameters, data, optimizer, the step."""
