"""The original: import of its checkpoint, and restoration exactly as AudioSR does it."""
