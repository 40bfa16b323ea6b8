"""The command line: every command a few lines over a function that a test and another program can call."""
