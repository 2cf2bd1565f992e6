"""What the unit tests put in the place of a node: small, and all of it here."""
