"""How fast, against what, on which machine."""
