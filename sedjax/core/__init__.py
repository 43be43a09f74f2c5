"""Shared by all subpackages: the task and its time grid, configs, files, devices, errors."""
