"""The control socket: what the copy manager may ask of the storage subsystem, and what it is told.

`messages` are the types, `server` is the subsystem's end of the socket, `operations` does what is asked.
`lines` and `wire_error` are the form of every conversation, between the agents too; `site_file` reads the one
configuration file of a site. Nothing else of this package is for the host agent.
"""
