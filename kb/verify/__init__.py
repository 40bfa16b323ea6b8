"""Verification: running an entry's `verify.py` and writing down what happened.

Everything here but `bundle` needs the standard library and pytest only, so that it runs on a node that has nothing but
Python, pytest and the libraries under test.
"""
