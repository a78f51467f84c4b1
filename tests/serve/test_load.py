"""The load test's check counts what is wrong; without Ray, and nothing is timed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import serve_load as load
import torch

pytest.importorskip("aiohttp")
pytest.importorskip("pydantic")


D, TENANTS = 64, 12


@pytest.fixture(scope="module")
def made() -> Any:
    given = load.inputs(0, D)
    # not the seed of the projectors: rows would lie in their spans
    rows = torch.randn(len(given), D, generator=torch.Generator().manual_seed(99))
    plain = torch.nn.functional.normalize(rows, dim=1)
    return load.table(plain, given, list(load.projectors(TENANTS, D, 0).values()))


def test_right_rows_pass(made: Any) -> None:
    found = load.Check()
    n = made.want.shape[1]
    for tenant in range(-1, TENANTS):
        rows = made.want[tenant].float().numpy()
        load.compare(made, found, np.full(n, tenant), np.arange(n), rows)
    assert (found.rows, found.wrong) == (n * (TENANTS + 1), 0)
    assert 0 < found.worst < 1


def test_a_row_of_another_tenant_is_wrong(made: Any) -> None:
    n = made.want.shape[1]
    assert load.confusable(made) <= load.MIX_UPS
    found = load.Check()
    load.compare(made, found, np.full(n, 3), np.arange(n), made.want[4].float().numpy())
    load.compare(made, found, np.full(n, 3), np.arange(n), made.want[-1].float().numpy())
    assert found.wrong >= 2 * n - 1
    found = load.Check()
    other = np.roll(np.arange(n), 1)
    load.compare(made, found, np.full(n, 3), other, made.want[3].float().numpy())
    assert found.wrong == n


def test_a_row_that_is_a_little_off_or_no_number_is_wrong(made: Any) -> None:
    rows = made.want[2].float().numpy()[:3].copy()
    rows[0, 5] += 1e-4
    rows[1, 7] = np.nan
    rows[2] *= 0.999
    found = load.Check()
    load.compare(made, found, np.full(3, 2), np.arange(3), rows)
    assert found.wrong == 3
