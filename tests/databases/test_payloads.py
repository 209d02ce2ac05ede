"""Ids of points."""

from __future__ import annotations

import uuid

import pytest

from embedcli.databases.payloads import NAMESPACE, make_uuid


@pytest.mark.parametrize("key", ["", "r1", "ünïcödé ☃", "0" * 1000, '["a",1]'])
def test_ids_are_the_uuids_that_other_programs_compute(key: str) -> None:
    assert make_uuid(key) == str(uuid.uuid5(NAMESPACE, key))
