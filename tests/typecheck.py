"""The checker of shapes and types in tests: beartype, with an int accepted where a float is."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
