"""Builds models, parameters, data, optimizer and the step from a config."""
