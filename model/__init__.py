"""The two-tower model: preprocessing, training, release folders and the inference handler."""
