"""Words that every room speaks: the task, its grid, configs, files, devices, errors."""
