"""Music: tracks of data sets, and crops of them for training."""
