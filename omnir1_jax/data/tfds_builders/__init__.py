"""TFDS builders for ReVOS, MeViS and Ref-AVS (array_record, no TensorFlow), and a reader of what they build."""
