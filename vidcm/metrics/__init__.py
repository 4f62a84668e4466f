"""Evaluation against true clips: one file per metric, `protocol` runs them all."""
