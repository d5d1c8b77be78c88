"""Packaging of omnir1_jax; its metadata stands in pyproject.toml. Here is what is not metadata: which files go along.

The configs and the toy's weights lie beside the package in a checkout and within it once installed, as
`omnir1_jax.configs` (`omnir1_jax.config.shipped` finds either).
"""

from setuptools import find_namespace_packages, setup

weights = find_namespace_packages("configs", include=["toy_weights", "toy_weights.*"])

setup(
    packages=[
        *find_namespace_packages(include=["omnir1_jax", "omnir1_jax.*"]),
        "omnir1_jax.configs",
        *(f"omnir1_jax.configs.{folder}" for folder in weights),
    ],
    package_dir={"omnir1_jax.configs": "configs"},
    package_data={
        "omnir1_jax": ["py.typed"],
        **{f"omnir1_jax.configs.{folder}": ["*"] for folder in weights},
        "omnir1_jax.systems.templates": ["*.txt"],
        "omnir1_jax.text": ["characters.npz"],
    },
)
