"""Whole-model inference."""
