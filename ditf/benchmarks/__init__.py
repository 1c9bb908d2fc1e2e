"""Scores, and the trivial rivals no score is shown without."""
