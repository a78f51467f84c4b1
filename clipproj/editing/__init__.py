"""Edits of a live model: folded in, logged, proved by a receipt, taken out to the bit."""
