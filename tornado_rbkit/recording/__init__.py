"""Recordings of a profiler: `recording` reads and writes them, `replay` serves them, `export` converts them.

Imports `protocol`, `client` and `endpoints`.
"""
