"""Numbers of another project's configuration."""

from __future__ import annotations

import pytest

from retnet_edge.errors import InputError
from retnet_edge.importing.layout import exact_quotient


def test_a_share_is_whole_and_bounded() -> None:
    assert exact_quotient("here", "width", 2_000_000, 2) == 1_000_000
    with pytest.raises(InputError, match="1000000 are most"):
        exact_quotient("here", "width", 1_000_000 * 1024.0, 1)
