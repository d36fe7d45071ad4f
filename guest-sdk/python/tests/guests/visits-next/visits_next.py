"""Version 2 of the starter: it stores the visits in another shape, and migrates those of version 1,
whatever its language."""

from dataclasses import dataclass

from foldstream import Event, Manifest, NewEntries, OldEntry, Projection, Reject, Table, UnknownVersion


@dataclass
class Visited:
    page: str = ""
    count: int = 0


class Visits(Projection):
    """Counts visits per page."""

    manifest = Manifest("starter", ["visits.*"], state_version=2)
    visits = Table[str, Visited]("visits")

    def apply(self, event: Event) -> None:
        page = event.token(2)
        visits = self.visits.edit(page)
        visits.page = page
        visits.count += 1

    def migrate(self, from_version: int, old: OldEntry, new: NewEntries) -> None:
        if from_version != 1:
            raise UnknownVersion(from_version)
        found = old.of_table("page", str, int)
        if found is None:
            return
        page, count = found
        if page == "odd":
            raise Reject("nobody knows what to do with this page")
        if page == "late":
            self.later()
        new.set(self.visits, page, Visited(page, count))

    async def later(self) -> None:
        """Never runs."""
