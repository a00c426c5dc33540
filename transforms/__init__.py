"""Shared PTransforms that touch nothing outside: a pure function on a batch, a thin PTransform beside it."""
