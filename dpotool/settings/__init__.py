"""Every setting of every command but those of training, whose losses come from a registry (`training.config`)."""
