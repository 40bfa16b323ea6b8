"""provenfix: a knowledge base of CUDA, PyTorch and Hugging Face errors whose fixes were proven by running them.

Importing this package is cheap and imports nothing but the standard library.
"""

__version__ = "0.1.0"
