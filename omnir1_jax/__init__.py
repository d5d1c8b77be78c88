"""Omni-R1 in JAX: a global reasoner and a frozen detail system, trained by GRPO in one compiled step."""

import os

__version__ = "0.1.0"

# transformers' tokenizers serve without PyTorch; its advice to install that reads like an error.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
