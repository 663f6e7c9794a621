"""Where music comes from: tracks of data sets, and batches of degraded crops for training."""
