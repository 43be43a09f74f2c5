"""One experiment a file; `get_config()` returns it as a ConfigDict."""
