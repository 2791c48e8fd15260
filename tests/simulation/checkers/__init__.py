"""What must hold in every run: one checker a file, told by the world what happens."""

from __future__ import annotations

from tests.simulation.checkers.base import Checker
from tests.simulation.checkers.base_content import BaseContent
from tests.simulation.checkers.data_behind_journal import DataBehindJournal
from tests.simulation.checkers.divergence import Divergence
from tests.simulation.checkers.fork_point import ForkPoint
from tests.simulation.checkers.images import Images
from tests.simulation.checkers.kept_on_return import KeptOnReturn
from tests.simulation.checkers.markers import Markers
from tests.simulation.checkers.no_full_copy import NoFullCopy
from tests.simulation.checkers.no_hang import NoHang
from tests.simulation.checkers.one_writer import OneWriter
from tests.simulation.checkers.promises import Promises
from tests.simulation.checkers.release import Release
from tests.simulation.checkers.shipped_durable import ShippedDurable
from tests.simulation.checkers.status_truth import StatusTruth

ALL: tuple[type[Checker], ...] = (
    Promises,
    Images,
    DataBehindJournal,
    ShippedDurable,
    BaseContent,
    Release,
    StatusTruth,
    NoFullCopy,
    Markers,
    OneWriter,
    KeptOnReturn,
    Divergence,
    ForkPoint,
    NoHang,
)
