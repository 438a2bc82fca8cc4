"""Runs `sampling` where the folder is executed by its path: ``python -I -S FOLDER PID [MICROSECONDS wall|cpu]``."""

import importlib
import os
import sys

sys.path[0:1] = []  # the folder, whose modules belong to a package
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
status = importlib.import_module("stack_reader.sampling").main(sys.argv[1:])
sys.stderr.flush()
os._exit(status)  # without the interpreter's end, which takes milliseconds
