"""What the command line and the service make where nothing else is asked for."""

from __future__ import annotations

import pytest
from test_methods import cone, texts

from clipproj.methods.defaults import make


def test_closed_lists_too_long_for_a_span_get_a_hull():
    forget = cone(1)
    for m, closed, want in (
        (16, True, "span"), (17, True, "hull"), (40, True, "hull"), (40, False, "mean"),
    ):  # fmt: skip
        made = make(forget, cone(m, seed=2), closed=closed)
        assert made.provenance["parameters"]["contrast"] == want
        assert float(made.strength) == (1.5 if want == "mean" else 1.0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "nullspaec"}, 'method must be "nullspace" or "ccup", got .nullspaec.'),
        ({"method": "ccup", "rank": 1}, 'options of "ccup" must be forget_weight or keep_weight'),
        ({"keep_weight": 1.0}, 'options of "nullspace" must be contrast or rank, got keep_weight'),
    ],
)
def test_what_a_method_has_not_is_refused(options, text):
    with pytest.raises(ValueError, match=f"make: {text}"):
        make(texts(1), texts(9, offset=1), **options)
