"""The SCSI device server: commands in, volume calls out. It knows no transport and no journal.

In reading order: `command` (the seam to the front ends), `device_server` (LUNs), `logical_unit` (dispatch,
and the short way of READ and WRITE), `operations` (the table of commands), `media_commands` and
`unit_commands` (what they do), `chain` (several volume calls for one command), `unit_state`,
`unit_attention`. Then what few commands need: `atomic_commands` with `gate`, `reservations` (rules) with
`reservation_data` and `reservation_commands`, `extended_copy`, `medium_removal`, `reports`, `log_pages`.
Formats, all pure and used by the initiator too: `cdb`, `sense`, `inquiry`, `mode`, `capacity`, `lun`.

Standards (SAM-5, SPC-4, SBC-3) are cited by the title of a clause where the drafts number it differently.
"""
