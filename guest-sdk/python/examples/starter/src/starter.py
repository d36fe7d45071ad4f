"""Counts visits per page: the smallest useful projection, to begin from."""

from foldstream import Event, Manifest, NotFound, Projection, Table, query


class Starter(Projection):
    """Counts visits per page"""

    manifest = Manifest("starter", ["visits.*"])

    # Everything it keeps, in tables. Entries of this one have keys such as `page/home`.
    pages = Table[str, int]("page")

    def apply(self, event: Event) -> None:
        """Applies one event. The page is the second token of the subject, as in `visits.home`."""
        page = event.token(2)
        self.pages[page] = self.pages.get(page, 0) + 1

    @query
    def visits(self, page: str) -> int:
        """How often a page was visited, by its name: "home"."""
        count = self.pages.get(page)
        if count is None:
            raise NotFound
        return count
