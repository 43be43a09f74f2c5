"""One experiment per file; `get_config()` returns it as a ConfigDict."""
