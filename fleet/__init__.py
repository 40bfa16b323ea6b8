"""Tests of `kb batch` on the engine of its extra; `make batch` installs it and runs them."""
