"""Places where errors are met: the interpreter's hooks, notebooks, pytest, a supervised command, MCP clients.

Each asks `kb.api` and shows the answer; none has a logic of its own.
"""
