"""Reads the stacks of a process that runs CPython 3.10 to 3.15, and writes them as MOJO (see `mojo`). Linux.

This is a program: ``python -I -S FOLDER PID MICROSECONDS wall|cpu``. It runs on every supported Python, needs only the
standard library, and ends with the process, with the reader of its output, or on SIGTERM. Its modules therefore import
nothing but each other and the standard library.

The stacks are read from /proc/PID/mem; nothing is written into the process, and it is not stopped. `memory` reads it,
`symbols` finds CPython in it, and `layouts` knows the offsets of CPython's structures. `reader` goes through the
interpreters and their threads, `frames` through the frames of one thread, and `codes` and `lines` find the place of an
instruction. All interpreters of the process are read; a thread that one of them has called from another has a stack in
each. `output` encodes the stacks, and `sampling` is the program.

The `_remote_debugging` of the standard library works alike from 3.14 on, but that of 3.14 ends a stack at the first
function that was called from C, it needs an interpreter of the same version, and its fast mode in 3.15 writes into the
process.
"""
