"""`python -m kb` is `kb`."""

from kb.cli.__main__ import main

main()
