"""Text from files and arguments, for a terminal: what would steer it is shown as an escape."""

from __future__ import annotations

import re

# C0 without line feed and tab, DEL, C1; marks that reorder a line; what no UTF-8 can hold.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """`text` with control characters as \\x1b or \\u202e; line feeds and tabs stay."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
