"""Formulas: each written once, with its equation, source, assumptions and units."""
