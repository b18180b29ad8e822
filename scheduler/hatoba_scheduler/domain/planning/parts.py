"""The planner's parts, as they know each other."""

from __future__ import annotations

from hatoba_scheduler.domain.planning.candidates import never_fits
from hatoba_scheduler.domain.planning.kinds import Shape, Shapes
from hatoba_scheduler.domain.planning.model import Needs, PlannerRules
from hatoba_scheduler.domain.planning.placing import Placer
from hatoba_scheduler.domain.planning.preemption import Preempting
from hatoba_scheduler.domain.planning.reservations import Reservations
from hatoba_scheduler.domain.planning.rooms import Rooms
from hatoba_scheduler.domain.planning.runs import Runs
from hatoba_scheduler.domain.planning.shares import Tree
from hatoba_scheduler.domain.planning.waiting import Waiting

REMEMBERED = 2000


class Parts:
    """Everything that is known, as the parts of the planner share it."""

    def __init__(self, rules: PlannerRules) -> None:
        self.rules = rules
        self.rooms = Rooms()
        self.shapes = Shapes(self.rooms)
        self.tree = Tree()
        self.runs = Runs()
        self.waiting = Waiting(self.tree, self.shapes, round(rules.ageing * 1000))
        self.placer = Placer(self.rooms)
        self.reservations = Reservations(self.rooms, self.runs, self.tree)
        self.preempting = Preempting(rules, self.reservations)
        self._never: dict[Needs, str] = {}
        self._told = 0

    def never_fits(self, shape: Shape) -> str:
        """Why no known pool could ever hold it; remembered until something else is told of one."""
        if self._told != self.rooms.told or len(self._never) > REMEMBERED:
            self._never = {}
            self._told = self.rooms.told
        never = self._never.get(shape.needs)
        if never is None:
            never = self._never[shape.needs] = never_fits(self.rooms, shape)
        return never
