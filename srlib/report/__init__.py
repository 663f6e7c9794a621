"""Artefacts, the chain of notebooks, figures, and the PDF."""
