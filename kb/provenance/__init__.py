"""`kb provenance`: does the message an entry claims stand in the distributions that are said to raise it?

`question` what to look for and in which releases; `shelf` wheels by way of pip; `scan` and `strings` what a wheel
holds; `survey` puts them together; `record` the files; `summary` what they say of each distribution.
"""

from kb.provenance.record import load, problems, read, write
from kb.provenance.summary import Standing, summary

__all__ = ["Standing", "load", "problems", "read", "summary", "write"]
