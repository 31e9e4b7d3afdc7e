"""What is in the key of an execution inside of a run."""

from __future__ import annotations

import pytest

from detbox.cache.start import _credentials
from detbox.machine.creds import Creds
from detbox.records import names, replace


@pytest.mark.parametrize("name", names(Creds))
def test_every_part_of_the_credentials_is_in_the_key(name: str) -> None:
    before = Creds.of(1000, 1000, (4,))
    after = replace(before, **{name: (7,) if name == "groups" else 7})
    assert repr(_credentials(before)) == repr(_credentials(replace(before))) != repr(_credentials(after))
