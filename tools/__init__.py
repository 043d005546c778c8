"""Programs: python -m tools.check, predict, thresholds, convert, voc_server, plot."""
