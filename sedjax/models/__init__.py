"""Features -> logits."""
