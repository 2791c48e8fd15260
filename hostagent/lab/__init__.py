"""The lab: several sites on one machine, as separate daemons on 127.0.0.x, with links that can be cut.

In reading order: `plan` (addresses, ports, the files of a lab), `daemon` (processes that outlive the command
which started them), `wire` (the links between the sites), `lab` (up, status, down, kill, cut, join).
"""
