"""Text inside the graph: bytes, answers and byte-level BPE."""
