"""The knowledge base as a web page and an HTTP interface; `kb serve` starts it."""
