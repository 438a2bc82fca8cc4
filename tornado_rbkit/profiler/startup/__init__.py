"""The folder that `follow` puts first in PYTHONPATH, so that the interpreter imports its ``sitecustomize``."""
