"""Packaging of omnir1_jax. Exact versions that CI ran: launch/constraints.txt."""

from setuptools import find_packages, setup

setup(
    name="omnir1_jax",
    version="0.1.0",
    description="Omni-R1 in JAX: reasoning about long video with sound, grounded in pixels.",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["omnir1_jax", "omnir1_jax.*"]),
    package_data={"omnir1_jax.systems": ["templates/*.txt"]},
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8",
        "av>=14",
        "etils[epath]>=1.10",
        "flax>=0.12",
        "grain>=0.2.10",
        "jax>=0.8",
        "jaxtyping>=0.3",
        "librosa>=0.11",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "opencv-python-headless>=4.10",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11",
        "pyarrow>=18",
        "pycocotools>=2.0.8",
        "safetensors>=0.5",
        "soundfile>=0.12",
        "tensorflow-datasets>=4.9.9",
        "tokenizers>=0.22",
        "tqdm>=4.66",
        "transformers>=5.0",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.8"],
        "cuda": ["jax[cuda12]>=0.8"],
        # torch and libtpu are oracles of the tests: numbers from one, ahead-of-time compilation from the other.
        "test": [
            "beartype>=0.20",
            "hypothesis>=6.100",
            "jax[tpu]>=0.8",
            "psutil>=6",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "scipy>=1.14",
            "torch==2.13.0",
        ],
        "serve": ["gradio>=5"],
    },
)
