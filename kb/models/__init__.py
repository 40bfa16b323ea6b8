"""Data that crosses stage boundaries.

`base`, `entry`, `published` and `evidence` are pydantic models of files and records. `result` holds the frozen
dataclasses of the matching path, which imports no pydantic.
"""
