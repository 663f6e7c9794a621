"""Systems, conditions and tracks to rows: metrics, limits, baselines, tables."""
