"""Data: readers, media, preprocessing, a synthetic world and the pipeline."""
