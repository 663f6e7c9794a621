"""Where music comes from: tracks of data sets, and crops of them for training."""
