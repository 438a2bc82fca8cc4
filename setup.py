"""The metadata is in pyproject.toml; this file is for the tools that still ask for it."""

from setuptools import setup

setup()
