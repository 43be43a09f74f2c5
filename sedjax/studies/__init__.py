"""Trained runs to tables and figures."""
