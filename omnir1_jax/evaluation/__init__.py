"""Evaluation: the official metrics of each benchmark."""
