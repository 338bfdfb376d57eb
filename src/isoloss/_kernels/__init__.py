"""Plain networks differentiated by hand: one alone, or many at once along a leading axis."""
