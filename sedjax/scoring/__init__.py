"""Logits -> segments -> counts -> cost."""
