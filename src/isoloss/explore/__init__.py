"""Uses of a walk: how far a quantity goes on the level set, which other networks lie there."""
