"""A search setting holds what pgvector takes, and survives the store's JSON."""

import json
from typing import Any

import pytest

from beamrec.schemas.serving import SearchSetting


@pytest.mark.parametrize("index", ["hnsw", "ivfflat", "none", "exact"])
def test_a_setting_survives_json_and_names_of_a_later_version(index: Any) -> None:
    setting = SearchSetting(index, ef_search=400, probes=32)
    stored = json.loads(json.dumps(setting.to_dict())) | {"of_a_later_version": 1}
    assert SearchSetting.from_dict(stored) == setting


@pytest.mark.parametrize(
    "values", [{"index": "flat"}, {"ef_search": 0}, {"ef_search": 1001}, {"probes": True}, {"probes": 2.0}]
)
def test_what_pgvector_would_refuse_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        SearchSetting.from_dict(values)
