"""Training-free methods, one file each, the plain baselines among them."""
