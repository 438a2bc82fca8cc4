"""Recordings: `recording` is the file format, `recorder` writes them, `replay` serves and `export` converts them.

Imports `protocol`, `client` and `endpoints`.
"""
