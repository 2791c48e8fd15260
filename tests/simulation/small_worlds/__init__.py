"""Worlds so small that nothing is left to chance: every crash of every short sequence of writes is tried.

`tests.simulation` draws schedules from seeds; here all of them are enumerated, with the same engine and the
same disks. In reading order:

    operations    the alphabet of host commands, what may lie between two of them, what the volumes then hold
    stepping      a scheduler without chance: turns, work and time go on only when told
    machine       a formatted pair of volumes with a tiny ring, and the engine on it
    tracing       what reached the disks, write by write and flush by flush, and what the host knew by then
    crash_states  every content that a loss of power can leave: any of the unflushed sectors, in any order
    recovering    the engine started from such a content: is it right, and does a second start agree
    primary       all sequences of one site, put together and counted
    secondary     the same for fetch, append, restore and checkpoint of a secondary
    enumeration   which of all these worlds every test run takes, and which the wider set
    damage        the recovery decision table, each row by damage to a real ring

`python -m tests.simulation.small_worlds` prints how many cases there are (`--wide`: the wider set).
"""
