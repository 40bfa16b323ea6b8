"""Millions of job logs at once: parts of the input, matched by workers that an engine keeps busy, into Parquet."""
