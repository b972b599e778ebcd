"""Data → checkpoint → evaluation → calibrated, exported, published bundle."""
