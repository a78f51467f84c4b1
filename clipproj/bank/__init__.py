"""Many projectors in one buffer, for batches in which each row has one of its own."""

from clipproj.bank.projector_bank import ProjectorBank
from clipproj.bank.rows import BankFull

__all__ = ["BankFull", "ProjectorBank"]
