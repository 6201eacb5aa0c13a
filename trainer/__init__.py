"""Training of heads on stored vectors."""
