"""The addresses to fetch: those of a label table that its rules keep, or a list."""

from dataclasses import dataclass

from infra.storage import Storage
from ray_jobs.labels.cells import plain
from ray_jobs.labels.cleaning import clean_labels, is_web
from ray_jobs.labels.rules import LabelRules
from ray_jobs.labels.spreadsheet import read_sheet


@dataclass(frozen=True, slots=True)
class Addresses:
    """What a source names; ``urls`` are those of the web, each once, in its order."""

    urls: tuple[str, ...]
    num_rows: int
    num_removed: int = 0  # rows of a label table that would not train: their videos are not fetched
    num_in_storage: int = 0  # addresses that are paths or objects already


def read_addresses(source: str, storage: Storage, rules: LabelRules) -> Addresses:
    """Read a label table, or a list of addresses without a header.

    What the rules keep out of training (minors, say) is not fetched in the first place.

    Raises:
        UserError: The source cannot be read, or holds no address.
    """
    sheet = read_sheet(source, storage)
    if is_web(plain(sheet.columns[0])):
        found = [plain(cells[0]) for cells in ((*sheet.columns,), *(cells for _, cells in sheet.rows))]
        num_rows, num_removed = len(found), 0
    else:
        labels = clean_labels(source, storage, (), rules, locate=str, needs_labels=False)
        found = labels.rows["uri"].to_pylist()
        num_rows, num_removed = labels.report.num_rows, len(labels.report.removed_rows)
    urls = tuple(dict.fromkeys(address for address in found if is_web(address)))
    return Addresses(urls, num_rows, num_removed, sum(not is_web(address) for address in found))
