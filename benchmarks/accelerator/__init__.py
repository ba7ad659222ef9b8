"""Measurements of ppo_jax on an accelerator, by one command: `python -m benchmarks.accelerator`.

A measurement is a task, which adds one or more rows to a CSV file. The modules are:

tasks      the record of a task, and the columns of the CSV
checks     training to the maximum return, resuming, agreement with the CPU
control    peak rates of the device; environment steps per second
language   PPO on decoders: tokens per second
peers      PureJaxRL and Rejax on some of the same tasks
learning   returns of 64 seeds, with confidence intervals
profile    the parts of one update
roofline   peak rates of the device, and the minimum work of a program
worker     the process that runs the tasks of one section
session    the process that starts the workers, limits their time and writes the rows
report     the table and the figure of docs/accelerators.md
"""
