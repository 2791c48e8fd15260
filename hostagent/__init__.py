"""The copy manager of one site: `python -m hostagent --config site.toml`, and `replctl`. Start reading here.

It brings two storage subsystems together and carries no data: what travels here is positions, commands and
states. The way of one operator's request, and of one position:

    replctl (cli)                                    another site's copy manager
      │  UNIX socket: agent_socket, line_stream, rpc   │  SSH: ssh_client, ssh_server, ssh_keys, stdio
      └────────────────┬───────────────────────────────┘
    daemon             one queue, one thread: the only place with sockets and a clock
      │
    requests           who may ask what: a table for operators, one for peers
      │
      ├─ pair_flows    create, split, resync, delete; `takeover`: one step after the other (flow)
      │                  plan         where two histories part, what a takeover means; pure
      │                  pair_states  the table of transitions; pure
      ├─ copy_manager  reconciling: level, not edges; repeated whenever something changed
      │                  at_primary   "durable up to N" to each mirror; release what it received
      │                  at_secondary keep the transfer running; "received, restored up to N"
      ├─ status        what is shown
      └─ store         what must survive: epochs heard of, pairs, the event log
      │
    target_link        the control socket of our own subsystem (target.control)

`environment` is the seam between `copy_manager` and the world: the daemon is one, the simulation another.
`known` is what a copy manager knows between two events. `config` reads `site.toml`; `lab` runs several sites
on one machine. `ssh_library` is paramiko, without what it brings along that nobody here uses.

Truth about data lives with the data, in the journal volumes: whatever is lost here is heard again.

Where each invariant is kept (those of the data path: see `target`):

- I4, only what is durable is shipped: `at_primary` announces the durable position and no other.
- I5, doing it again changes nothing: every step of a flow first finds out how far things are; positions are
  cumulative, so that a lost or repeated note does no harm.
- I6, never better than the truth: `status`; a site that met a newer epoch (`plan.supersedes`) is superseded
  durably, in its subsystem, before anything else.
- I7, no full copy that was not asked for: `pair_flows` asks for one in `create` alone; a resync whose fork
  cannot be found is a ConflictError (`plan.fork_point`).
"""
