"""A project of the user's own: what `gda init` finds out about images and machine, and what it decides from that."""
