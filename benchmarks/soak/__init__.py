"""Soak test: killed processes, damaged files, full disks and memory use of long runs."""
